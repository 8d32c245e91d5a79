"""What a picture shows, which style it has and what moves in it, judged by networks of their own.

The judges were trained on drawings of the demo world alone, never on generated pictures, and share
no weights, features or architecture with the model; `training` makes them. How often they are right
on true pictures is the ceiling of what they can tell.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float32, UInt8

from stylecrafter_jax import params as weights
from stylecrafter_jax.checkpoints.torch_files import read_safetensors
from stylecrafter_jax.models.judge import JudgeNetwork, apply
from stylecrafter_jax.params import Params
from stylecrafter_jax.world.contents import CONTENTS
from stylecrafter_jax.world.scenes import FRAMES, MOTIONS

CHUNK = 64
# Rows of the style head are compared by their cosines.
PICTURES = JudgeNetwork(heads=(("content", len(CONTENTS)), ("style", 64)))
CLIPS = JudgeNetwork(heads=(("motion", len(MOTIONS)),))


class Judges(NamedTuple):
    """The judges' weights; picture and clip network."""

    pictures: Params
    clips: Params

    def contents(self, pictures: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n contents"]:
        """Returns the log-probabilities of `world.contents.CONTENTS`."""
        return _by_chunks(_contents, self.pictures, pictures)

    def styles(self, pictures: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n d"]:
        """Returns style embeddings of length 1."""
        return _by_chunks(_styles, self.pictures, pictures)

    def motions(self, clips: UInt8[np.ndarray, "n f h w 3"]) -> Float32[np.ndarray, "n motions"]:
        """Returns the log-probabilities of `world.scenes.MOTIONS`.

        Raises:
            ValueError: the clips have another number of frames than the judge knows.
        """
        if clips.shape[1] != FRAMES:
            raise ValueError(f"the motion judge knows clips of {FRAMES} frames, got {clips.shape}")
        return _by_chunks(_motions, self.clips, clips)


def load_judges(path: Path) -> Judges:
    """Returns the judges in a file that `training` wrote."""
    flat = {name: value.astype(np.float32) for name, value in read_safetensors(path).items()}
    return Judges(weights.part(flat, "pictures"), weights.part(flat, "clips"))


def seen(pixels: Array) -> Array:
    """Returns uint8 pixels as the networks want them; a clip's frames are channels."""
    pixels = pixels.astype(np.float32) / 127.5 - 1.0
    return pixels if pixels.ndim == 4 else rearrange(pixels, "b f h w c -> b h w (f c)")


@jax.jit
def _contents(params: Params, pictures: Array) -> Array:
    return jax.nn.log_softmax(apply(PICTURES, params, seen(pictures))["content"])


@jax.jit
def _styles(params: Params, pictures: Array) -> Array:
    return normalised(apply(PICTURES, params, seen(pictures))["style"])


@jax.jit
def _motions(params: Params, clips: Array) -> Array:
    return jax.nn.log_softmax(apply(CLIPS, params, seen(clips))["motion"])


def normalised(x: Array) -> Array:
    """Returns rows of length 1."""
    return x / jax.numpy.linalg.norm(x, axis=-1, keepdims=True)


def _by_chunks(function, params: Params, rows: np.ndarray) -> np.ndarray:
    parts = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        padding = ((0, CHUNK - len(part)), *((0, 0),) * (rows.ndim - 1))
        parts.append(np.asarray(function(params, np.pad(part, padding)))[: len(part)])
    return np.concatenate(parts)
