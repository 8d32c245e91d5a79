"""Scenes to pixels and captions."""

import numpy as np
from jaxtyping import Float32, UInt8

from stylecrafter_jax.world.scenes import SIZE, Scene, draw_background, lay_out
from stylecrafter_jax.world.styles import apply_style, phrase


def draw(scene: Scene) -> UInt8[np.ndarray, "f 64 64 3"]:
    """Returns the frames of a scene; a picture has one."""
    background = draw_background(scene.place, scene.seed)
    frames = np.empty((len(scene.track), SIZE, SIZE, 3), np.uint8)
    for i in range(len(frames)):
        # Frames in which nothing moved are the same: things stand still, or pause.
        if i and scene.track[i] == scene.track[i - 1]:
            frames[i] = frames[i - 1]
            continue
        rgb, alpha = lay_out(background, scene, i)
        if scene.style is not None:
            rgb = apply_style(rgb, alpha, scene.style)
        frames[i] = (_halved(rgb) * 255.0 + 0.5).astype(np.uint8)
    return frames


def draw_cover(scene: Scene) -> Float32[np.ndarray, "f 64 64"]:
    """Returns how much of every pixel the object covers, in [0, 1]."""
    background = np.zeros_like(draw_background("", 0))
    frames = range(len(scene.track))
    return np.stack([_halved(lay_out(background, scene, i)[1]) for i in frames])


def caption(scene: Scene, style_words: bool) -> str:
    """Returns a scene in words, such as "a cat moving left on grass, blue neon".

    Args:
        scene: what is seen.
        style_words: whether the style is named; an ordinary look has no words.
    """
    article = "an" if scene.content[0] in "aeiou" else "a"
    words = " ".join(part for part in (article, scene.content, scene.motion, scene.place) if part)
    return f"{words}, {phrase(scene.style)}" if style_words and scene.style else words


def _halved(x: np.ndarray) -> np.ndarray:
    """Returns a plane or picture averaged over squares of 2x2."""
    return 0.25 * (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2])
