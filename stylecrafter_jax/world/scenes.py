"""Where things are and how they move: places, motions, and scenes laid out without a style.

Objects stay on a grid of `STEP` pixels and have few sizes, so that an autoencoder of that stride
sees every one of them in the same few ways; see docs/architecture.md, "The demo world".
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from stylecrafter_jax.world.contents import CONTENTS, MODEL_SETS, load_drawing
from stylecrafter_jax.world.style_tools import CANVAS, ROWS, Plane, Rgb, hsv, mix, ramp
from stylecrafter_jax.world.styles import Style, choose

SIZE = 64  # side of a finished picture, in pixels
SCALE = CANVAS // SIZE  # scenes are drawn so many times as large, then averaged
STEP = 8  # objects move by multiples of it
FRAMES = 8
SIDES = (24, 32, 40, 48)
HORIZONS = (40, 48)
PLACES = ("", "on grass", "at night", "on the beach", "in the snow", "at sunset")
MOTIONS = ("", "moving left", "moving right", "rising", "falling", "growing", "shrinking")
# Motion -> how far it goes to the right and down.
DIRECTIONS = {
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "rising": (0, -1),
    "falling": (0, 1),
}
# One in so many combinations of content, place and motion is never trained on.
HELD_OUT_SHARE = 10


class Spot(NamedTuple):
    """Where an object is in one frame.

    Attributes:
        column: steps of 8 pixels to the right of the centre.
        row: steps below the centre.
        side: of the drawing, in pixels.
    """

    column: int
    row: int
    side: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything a picture or clip shows; drawing it twice gives the same pixels.

    Attributes:
        content: what is in it.
        drawing: the set that the drawing is from.
        place: where it is, in words; "" is a plain background.
        motion: what it does, in words; "" of pictures and of clips in which it stands still.
        track: where it is, by frame; a picture has one.
        seed: of the background's colours and details.
        style: how it is drawn; None: the ordinary look.
    """

    content: str
    drawing: str
    place: str
    motion: str
    track: tuple[Spot, ...]
    seed: int
    style: Style | None = None


def held_out(content: str, place: str, motion: str) -> bool:
    """Returns whether training never sees this combination; pictures have no motion."""
    c, p, m = CONTENTS.index(content), PLACES.index(place), MOTIONS.index(motion)
    # Of every content at most one place per motion, and of every place two contents.
    return (7 * c + p + 3 * m) % HELD_OUT_SHARE == 0


def make_track(motion: str, frames: int, rng: np.random.Generator) -> tuple[Spot, ...]:
    """Returns where an object is in every frame of a motion; only standing still is random.

    Args:
        motion: one of `MOTIONS`.
        frames: at least 2.
        rng: chooses where, and how large, what stands still is.
    """
    if frames < 2:
        raise ValueError(f"a clip has at least 2 frames, got {frames}")
    if motion in DIRECTIONS:
        right, down = DIRECTIONS[motion]
        steps = np.round(np.linspace(-2, 2, frames)).astype(int).tolist()
        return tuple(Spot(right * k, down * k, 40) for k in steps)
    if motion == "":
        spot = Spot(int(rng.integers(-1, 2)), 0, int(rng.choice((40, 48))))
        return (spot,) * frames
    sides = [SIDES[i * len(SIDES) // frames] for i in range(frames)]
    return tuple(Spot(0, 0, side) for side in (sides if motion == "growing" else sides[::-1]))


def sample_scene(
    rng: np.random.Generator,
    *,
    frames: int = 1,
    contents: Sequence[str] = CONTENTS,
    drawings: Sequence[str] = MODEL_SETS,
    places: Sequence[str] = PLACES,
    motions: Sequence[str] = MOTIONS,
    style: Style | None = None,
    held: bool | None = False,
) -> Scene:
    """Returns a random scene, places and motions evenly.

    A picture is, half of the time, a random frame of a random motion, else of something that
    stands still: its caption names no motion, but all positions and sizes occur.

    Args:
        rng: the only randomness.
        frames: 1 for a picture.
        contents: to choose from; likewise `drawings`, `places` and `motions`.
        drawings: see above.
        places: see above.
        motions: see above.
        style: how it is drawn.
        held: whether its combination must be a held-out one; None allows both.

    Raises:
        ValueError: no combination of these is allowed.
    """
    for _ in range(1000):
        content = choose(contents, rng)
        place = choose(places, rng)
        motion = choose(motions, rng)
        said = motion if frames > 1 else ""
        if held is None or held_out(content, place, said) == held:
            break
    else:
        raise ValueError(f"found no combination with held={held} among {contents} and {places}")
    if frames > 1:
        track = make_track(motion, frames, rng)
    else:
        seen = make_track(motion if rng.random() < 0.5 else "", FRAMES, rng)
        track = (seen[int(rng.integers(len(seen)))],)
    return Scene(
        content=content,
        drawing=choose(drawings, rng),
        place=place,
        motion=said,
        track=track,
        seed=int(rng.integers(2**31)),
        style=style,
    )


def lay_out(background: Rgb, scene: Scene, frame: int) -> tuple[Rgb, Plane]:
    """Returns one frame without its style, at `CANVAS` pixels, and the cover of its object."""
    column, row, side = scene.track[frame]
    picture = load_drawing(scene.content, scene.drawing, side * SCALE)
    top = (SIZE // 2 + STEP * row - side // 2) * SCALE
    left = (SIZE // 2 + STEP * column - side // 2) * SCALE
    end = top + side * SCALE, left + side * SCALE
    inside = slice(max(top, 0), min(end[0], CANVAS)), slice(max(left, 0), min(end[1], CANVAS))
    part = picture[
        inside[0].start - top : inside[0].stop - top, inside[1].start - left : inside[1].stop - left
    ]
    rgb, alpha = background.copy(), np.zeros((CANVAS, CANVAS), np.float32)
    alpha[inside] = part[..., 3]
    rgb[inside] = part[..., :3] + rgb[inside] * (1.0 - part[..., 3:])
    return rgb, alpha


def draw_background(place: str, seed: int) -> Rgb:
    """Returns a place, at `CANVAS` pixels; colours and details vary a little with the seed."""
    rng = np.random.default_rng(seed)
    if place == "":
        colour = hsv(rng.random(), rng.uniform(0.0, 0.25), rng.uniform(0.75, 1.0))
        return _sky(colour, mix(colour, np.ones(3, np.float32), 0.3))
    top, bottom, spread = SKIES[place]
    rgb = _sky(_shaken(top, spread, rng), _shaken(bottom, spread, rng))
    if place in GROUNDS:
        horizon = int(rng.choice(HORIZONS)) * SCALE
        if place == "on the beach":
            rgb[horizon:] = _shaken((0.1, 0.5, 0.75), 0.02, rng)
            horizon += STEP * SCALE
        near, far = (_shaken(colour, spread, rng) for colour in GROUNDS[place])
        t = np.linspace(0.0, 1.0, CANVAS - horizon, dtype=np.float32)[:, None, None]
        rgb[horizon:] = near + t * (far - near)
    if place in SPECKS:
        _add_specks(rgb, rng, *SPECKS[place])
    return rgb


# Place -> colours of the sky at its top and at its foot, and how much they vary.
SKIES = {
    "on grass": ((0.5, 0.75, 1.0), (0.8, 0.93, 1.0), 0.05),
    "at night": ((0.04, 0.05, 0.2), (0.12, 0.13, 0.38), 0.02),
    "on the beach": ((0.4, 0.7, 0.95), (0.75, 0.92, 1.0), 0.05),
    "in the snow": ((0.66, 0.74, 0.88), (0.8, 0.86, 0.94), 0.03),
    "at sunset": ((0.35, 0.2, 0.5), (1.0, 0.6, 0.25), 0.04),
}
# Place -> colours of the ground at the horizon and at the front.
GROUNDS = {
    "on grass": ((0.45, 0.75, 0.3), (0.2, 0.5, 0.15)),
    "on the beach": ((0.96, 0.87, 0.65), (0.88, 0.75, 0.5)),
    "in the snow": ((0.97, 0.98, 1.0), (0.85, 0.9, 0.97)),
}
# Place -> number and brightness of stars or flakes.
SPECKS = {"at night": (14, 0.95), "in the snow": (14, 1.0)}


def _sky(top: Float32[np.ndarray, " 3"], bottom: Float32[np.ndarray, " 3"]) -> Rgb:
    return ramp(ROWS / (CANVAS - 1), top, bottom)


def _shaken(
    colour: tuple[float, float, float], spread: float, rng: np.random.Generator
) -> Float32[np.ndarray, " 3"]:
    return np.clip(colour + rng.normal(0.0, spread, 3), 0.0, 1.0).astype(np.float32)


def _add_specks(rgb: Rgb, rng: np.random.Generator, count: int, value: float) -> None:
    """Draws dots of one finished pixel, each in the middle of a square of the grid."""
    squares = rng.choice((SIZE // STEP) ** 2, count, replace=False)
    for row, column in zip(*np.divmod(squares, SIZE // STEP), strict=True):
        y, x = (int(i) * STEP * SCALE + CANVAS // SIZE * 3 for i in (row, column))
        rgb[y : y + SCALE, x : x + SCALE] = value
