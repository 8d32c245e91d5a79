"""Pixels to latents and back in bounded memory: in chunks of frames, and in tiles of a frame."""

from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

# Neighbouring tiles share a quarter of their side; the seam is a linear blend over it.
OVERLAP = 0.25


def encode_frames(
    encode: Callable[[Array], tuple[Array, Array]],
    pixels: Float[np.ndarray, "b f h w c"],
    *,
    scale_factor: float,
    chunk: int = 4,
    noise: Float[np.ndarray, "b f y x z"] | None = None,
) -> Float[np.ndarray, "b f y x z"]:
    """Returns the scaled latents of a video, `chunk` frames at a time.

    Args:
        encode: pixels in [-1, 1] (n h w c) -> mean and log-variance of unscaled latents.
        pixels: pixels in [-1, 1].
        scale_factor: latents are multiplied by it.
        chunk: frames per call; the last call is padded to the same shape.
        noise: standard normal; with it the posterior is sampled, as the original does for training,
            without it the mean is returned.

    Source: StyleCrafter, lvdm/models/ddpm3d.py, encode_first_stage with perframe_ae.
    """
    batch = pixels.shape[0]

    def moments(frames):
        mean, logvar = encode(frames)
        return jnp.concatenate([mean, jnp.exp(0.5 * logvar)], axis=-1)

    rows = rearrange(pixels, "b f h w c -> (b f) h w c")
    found = _by_chunks(moments, rows, min(chunk, len(rows)))
    mean, deviation = np.split(found, 2, axis=-1)
    if noise is not None:
        mean = mean + deviation * rearrange(noise, "b f y x z -> (b f) y x z")
    return rearrange(scale_factor * mean, "(b f) y x z -> b f y x z", b=batch)


def decode_frames(
    decode: Callable[[Array], Array],
    latents: Float[Array, "b f y x z"],
    *,
    scale_factor: float,
    factor: int,
    chunk: int = 4,
    tile: int | None = None,
) -> Float[np.ndarray, "b f h w c"]:
    """Returns the pixels of scaled latents, `chunk` frames (or tiles) at a time.

    Args:
        decode: unscaled latents (n y x z) -> pixels (n h w c).
        latents: scaled latents.
        scale_factor: latents are divided by it.
        factor: pixels per latent along a side.
        chunk: frames or tiles per call; the last call is padded to the same shape.
        tile: side of a tile in latents; None decodes whole frames. Tiles are close to whole frames,
            not equal: the decoder's norms and attention see a tile instead of the frame.

    Source: StyleCrafter, lvdm/models/ddpm3d.py, decode_core with perframe_ae.
    """
    batch, _, height, width, _ = latents.shape
    rows = np.asarray(rearrange(latents, "b f y x z -> (b f) y x z"), np.float32) / scale_factor
    if tile is None or (height <= tile and width <= tile):
        pixels = _by_chunks(decode, rows, chunk)
    else:
        pixels = np.concatenate([_decode_tiles(decode, row, tile, factor, chunk) for row in rows])
    return rearrange(pixels, "(b f) h w c -> b f h w c", b=batch)


def _by_chunks(function: Callable[[Array], Array], rows: np.ndarray, chunk: int) -> np.ndarray:
    results = []
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        padding = ((0, chunk - len(part)), *((0, 0),) * (rows.ndim - 1))
        results.append(np.asarray(function(jnp.asarray(np.pad(part, padding))))[: len(part)])
    return np.concatenate(results)


def _decode_tiles(decode, row: np.ndarray, tile: int, factor: int, chunk: int) -> np.ndarray:
    """Decodes one frame (y x z) from overlapping tiles; returns (1 h w c)."""
    height, width, _ = row.shape
    tile_h, tile_w = min(tile, height), min(tile, width)
    corners = [(y, x) for y in _starts(height, tile_h) for x in _starts(width, tile_w)]
    tiles = np.stack([row[y : y + tile_h, x : x + tile_w] for y, x in corners])
    decoded = _by_chunks(decode, tiles, chunk)
    ramp_h, ramp_w = _ramp(tile_h * factor), _ramp(tile_w * factor)
    weight = (ramp_h[:, None] * ramp_w[None, :])[..., None]
    total = np.zeros((height * factor, width * factor, decoded.shape[-1]), np.float32)
    weights = np.zeros((height * factor, width * factor, 1), np.float32)
    for (y, x), pixels in zip(corners, decoded, strict=True):
        window = np.s_[y * factor : (y + tile_h) * factor, x * factor : (x + tile_w) * factor]
        total[window] += weight * pixels
        weights[window] += weight
    return (total / weights)[None]


def _starts(length: int, tile: int) -> Iterator[int]:
    """Yields where tiles start so that they cover `length` with at least the overlap."""
    step = max(1, int(tile * (1 - OVERLAP)))
    yield from range(0, length - tile, step)
    yield length - tile


def _ramp(length: int) -> np.ndarray:
    """Returns weights that rise linearly from the borders over the overlap, never zero."""
    border = max(1, int(length * OVERLAP))
    distance = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))
    return np.minimum(distance / border, 1.0).astype(np.float32)
