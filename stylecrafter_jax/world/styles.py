"""Looks of the demo world: families of styles, and their instances.

A family is a way of drawing (`neon`), an instance a family with hues and a texture (`blue neon`):
any number of scenes drawn in one instance share its look and nothing else.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from stylecrafter_jax.world import styles_colour as colour
from stylecrafter_jax.world import styles_lines as lines
from stylecrafter_jax.world.style_tools import Plane, Rgb, StyleParameters, clip

Family = Callable[[Rgb, Plane, StyleParameters, np.random.Generator], Rgb]

FAMILIES: dict[str, Family] = {
    "ink drawing": lines.ink_drawing,
    "pencil sketch": lines.pencil_sketch,
    "halftone": lines.halftone,
    "neon": lines.neon,
    "blueprint": lines.blueprint,
    "chalk": lines.chalk,
    "risograph": lines.risograph,
    "tinted photo": lines.tinted_photo,
    "thermal": lines.thermal,
    "silhouette": lines.silhouette,
    "moonlight": lines.moonlight,
    "contour map": lines.contour_map,
    "spray paint": lines.spray_paint,
    "pixel art": colour.pixel_art,
    "watercolor": colour.watercolor,
    "oil painting": colour.oil_painting,
    "pointillism": colour.pointillism,
    "comic": colour.comic,
    "cross stitch": colour.cross_stitch,
    "clay": colour.clay,
    "mosaic": colour.mosaic,
    "vhs": colour.vhs,
    "poster": colour.poster,
    "woodcut": lines.woodcut,
    "foil": lines.foil,
    "stained glass": colour.stained_glass,
    "crayon": colour.crayon,
    "paper cut": colour.paper_cut,
}
# Never trained on.
HELD_OUT_FAMILIES = ("stained glass", "woodcut", "foil", "crayon", "paper cut")
TRAIN_FAMILIES = tuple(name for name in FAMILIES if name not in HELD_OUT_FAMILIES)
# Their look is one hue; all others show a second one, too.
ONE_HUE = (
    "ink drawing",
    "pencil sketch",
    "neon",
    "blueprint",
    "tinted photo",
    "silhouette",
    "moonlight",
    "vhs",
    "woodcut",
    "foil",
)
HUES = 12
# Upper end of a colour word's hues; what is above the last is red again.
WORDS = (
    (0.042, "red"),
    (0.125, "orange"),
    (0.208, "yellow"),
    (0.458, "green"),
    (0.542, "cyan"),
    (0.708, "blue"),
    (0.792, "purple"),
    (0.958, "pink"),
)


@dataclasses.dataclass(frozen=True)
class Style:
    """A style instance.

    Attributes:
        family: a key of `FAMILIES`.
        parameters: hues and texture.
        seed: of the texture's noise.
    """

    family: str
    parameters: StyleParameters
    seed: int


def choose(options: Sequence[str], rng: np.random.Generator) -> str:
    """Returns one of the options, all of them equally often."""
    return options[int(rng.integers(len(options)))]


def sample_style(rng: np.random.Generator, families: Sequence[str] = TRAIN_FAMILIES) -> Style:
    """Returns a random instance of a random family; main hues are twelve, nearly."""
    first = int(rng.integers(HUES))
    second = first + int(rng.integers(HUES // 4, HUES - HUES // 4 + 1))
    main, other = ((hue + rng.uniform(-0.2, 0.2)) / HUES % 1.0 for hue in (first, second))
    family = choose(families, rng)
    parameters = StyleParameters(main, other, rng.random(), rng.random())
    return Style(family, parameters, int(rng.integers(2**31)))


def apply_style(rgb: Rgb, alpha: Plane, style: Style) -> Rgb:
    """Returns a scene drawn in a style, in [0, 1]; see `style_tools` for the arguments."""
    rng = np.random.default_rng(style.seed)
    return clip(FAMILIES[style.family](rgb, alpha, style.parameters, rng))


def colour_word(hue: float) -> str:
    """Returns what a hue is called."""
    return next((word for end, word in WORDS if hue < end), "red")


def phrase(style: Style) -> str:
    """Returns a style in words, such as "blue neon" or "red and green risograph"."""
    word = colour_word(style.parameters.main)
    if style.family not in ONE_HUE:
        word = f"{word} and {colour_word(style.parameters.second)}"
    return f"{word} {style.family}"
