"""The drawings of the demo world: twenty contents, each in three sets of emoji.

Licences and authors of the drawings are in `NOTICE` beside this file.
"""

import functools
import io
import json
import zipfile
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

CONTENTS = (
    "cat",
    "elephant",
    "penguin",
    "owl",
    "turtle",
    "butterfly",
    "rose",
    "cactus",
    "pine tree",
    "mushroom",
    "apple",
    "pineapple",
    "house",
    "car",
    "rocket",
    "sailboat",
    "umbrella",
    "snowman",
    "crown",
    "guitar",
)
# What the model is trained on. One ordinary look: with two it needs twice the pictures to know a
# content, see docs/demo_model.md.
MODEL_SETS = ("twemoji",)
# What judges are trained on.
TRAIN_SETS = ("twemoji", "fluent-emoji-flat")
# Never trained on: a judge that only knows the other two sets by heart fails here.
HELD_OUT_SETS = ("noto",)
SETS = TRAIN_SETS + HELD_OUT_SETS
PICTURES = "pictures.zip"


def file_name(content: str, drawing: str) -> str:
    """Returns the name of a drawing in the pack."""
    return f"{drawing}/{content.replace(' ', '_')}.webp"


@functools.cache
def _files() -> dict[str, bytes]:
    """Returns the files of the pack by name."""
    packed = resources.files("stylecrafter_jax.world").joinpath(PICTURES).read_bytes()
    with zipfile.ZipFile(io.BytesIO(packed)) as pack:
        return {name: pack.read(name) for name in pack.namelist()}


def manifest() -> dict[str, Any]:
    """Returns where the drawings come from: package, version, licence and author by set."""
    return json.loads(_files()["manifest.json"])


@functools.cache
def load_drawing(content: str, drawing: str, side: int) -> Float32[np.ndarray, "s s 4"]:
    """Returns a drawing of `side` pixels as red, green, blue and coverage, all in [0, 1].

    The colours are multiplied by the coverage. The array is shared: do not write to it.

    Raises:
        KeyError: there is no such content or set.
    """
    with Image.open(io.BytesIO(_files()[file_name(content, drawing)])) as image:
        whole = image.convert("RGBA").convert("RGBa")
        resized = whole.resize((side, side), Image.Resampling.BILINEAR)
    array = np.asarray(resized, np.float32) / 255
    array.flags.writeable = False
    return array
