"""What a model of the world is measured on: ten styles, and scenes, of which it has seen none.

The styles are two instances of each family that training never draws, of opposite hues; the
scenes are combinations of content, place and motion that training never draws.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from stylecrafter_jax.world.contents import CONTENTS
from stylecrafter_jax.world.drawing import caption, draw
from stylecrafter_jax.world.scenes import Scene, sample_scene
from stylecrafter_jax.world.source import WorldSource
from stylecrafter_jax.world.style_tools import StyleParameters
from stylecrafter_jax.world.styles import HELD_OUT_FAMILIES, Style

SEED = 300  # no training or judge uses it
STYLES = tuple(
    Style(family, StyleParameters(main, (main + 0.4) % 1.0, 0.5, 0.5), 10 * number + side)
    for number, family in enumerate(HELD_OUT_FAMILIES)
    for side, main in enumerate((number / 10, number / 10 + 0.5))
)
REFERENCE_CONTENTS = tuple(CONTENTS[(3 * i) % len(CONTENTS)] for i in range(len(STYLES)))


class Case(NamedTuple):
    """One clip or picture to be generated.

    Attributes:
        prompt: names content, motion and place; pictures have no motion.
        style: number of its reference in `STYLES`.
        scene: what the prompt says, drawn in that style: the true clip or picture.
    """

    prompt: str
    style: int
    scene: Scene


def cases(count: int, *, pictures: bool = False) -> list[Case]:
    """Returns the first cases of an endless fixed list of clips or pictures; styles take turns."""
    kind = "styled" if pictures else "styled_clips"
    source = WorldSource(kind, max(count, 1), SEED, split="held_out")
    scenes = (source[i].scene for i in range(count))
    chosen = []
    for i, scene in enumerate(scenes):
        number = i % len(STYLES)
        true = dataclasses.replace(scene, style=STYLES[number])
        chosen.append(Case(caption(scene, False), number, true))
    return chosen


def references() -> list[UInt8[np.ndarray, "h w 3"]]:
    """Returns one picture in each of the styles; they show `REFERENCE_CONTENTS`."""
    pictures = []
    for i, (style, content) in enumerate(zip(STYLES, REFERENCE_CONTENTS, strict=True)):
        rng = np.random.default_rng([SEED, i])
        pictures.append(draw(sample_scene(rng, contents=(content,), style=style))[0])
    return pictures
