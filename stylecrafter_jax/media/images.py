"""Style images: from files, PIL images or arrays to squares, and on to CLIP's pixels."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, UInt8
from PIL import Image, ImageOps

from stylecrafter_jax.foreign import reason

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SMALLEST_SIDE = 8
STYLE_SIDE = 512  # pixels of a style image, unless told
# Above this many pixels a JPEG is decoded at a lower resolution.
LARGE = 2**25
# Of a longer strip only the middle is resized: all of it could need any amount of memory.
LONGEST_ASPECT = 16


class ImageError(ValueError):
    """An image cannot be read or used; the message is one line that names it."""


def load_style_image(
    source: str | Path | Image.Image | np.ndarray, size: int = STYLE_SIDE
) -> UInt8[np.ndarray, "size size 3"]:
    """Returns an image as a square: shorter side to `size`, then the centre.

    A file's orientation tag is applied, transparent parts become white, grey, palette, 16-bit
    and CMYK images become RGB, and of an animated file the first frame is taken. Memory is
    bounded by about 8 bytes for each pixel of the file.

    Args:
        source: a file, an image, or an array: uint8 or floats in [0, 1] of h w, h w 3 or h w 4.
        size: height and width of the result.

    Raises:
        ImageError: the file is not a readable image, has more than Pillow's limit of 179 million
            pixels or a side below 8; the array is none of the above.

    Source: StyleCrafter, scripts/evaluation/style_inference.py, load_data_from_json: Resize(512)
    and CenterCrop(512) of torchvision.
    """
    if isinstance(source, np.ndarray):
        name, image = f"the array of shape {source.shape}", _from_array(source)
    else:
        name = "the image" if isinstance(source, Image.Image) else str(source)
        image = _decode(source, name, size)
    if min(image.size) < SMALLEST_SIDE:
        w, h = image.size
        raise ImageError(f"{name} has {h}x{w} pixels, wanted at least {SMALLEST_SIDE} on a side")
    return np.asarray(on_white(_square(image, size)))


def clip_pixels(
    images: UInt8[Array | np.ndarray, "b h w 3"],
    size: int = 224,
    mean: tuple[float, ...] = CLIP_MEAN,
    std: tuple[float, ...] = CLIP_STD,
) -> Float32[Array, "b size size 3"]:
    """Returns images as the CLIP image tower takes them: resized and normalised, float32.

        out = (R_h (image / 255) R_w^T - mean) / std,  R = cubic(size, n) blur(size, n)

    `blur`, only where an axis of n pixels shrinks, is a Gaussian of sigma = (n / size - 1) / 2
    over int(max(4 sigma, 3)) pixels, one more if that is even, with reflected borders. `cubic`
    interpolates with coefficient -0.75 at positions that align the corner pixels, borders
    repeated. Values may overshoot: nothing is clipped. The original resizes in [-1, 1], which is
    the same since the rows of R sum to one.

    Source: StyleCrafter, lvdm/modules/encoders/condition.py, FrozenOpenCLIPImageEmbedder
    .preprocess; kornia.geometry.resize(interpolation="bicubic", align_corners=True,
    antialias=True).
    """
    x = jnp.asarray(images, jnp.float32) / 255.0
    _, h, w, _ = x.shape
    if (h, w) != (size, size):
        rows, columns = _resize_matrix(h, size), _resize_matrix(w, size)
        highest = jax.lax.Precision.HIGHEST
        x = jnp.einsum("bhwc,ih->biwc", x, rows.astype(np.float32), precision=highest)
        x = jnp.einsum("biwc,jw->bijc", x, columns.astype(np.float32), precision=highest)
    centre, spread = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, 3) for v in (mean, std))
    return (x - centre) / spread


def _decode(source: str | Path | Image.Image, name: str, size: int) -> Image.Image:
    """Returns a file or image upright, as RGB or, if any of it may be transparent, RGBA."""
    try:
        # Nested, since a name for each step would keep one more copy of a huge image.
        return with_alpha(_upright(source, size))
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"cannot read {name}: not an image of a known format") from error
    except Exception as error:  # a decoder may raise anything on a broken file
        why = getattr(error, "strerror", None) or reason(error)
        raise ImageError(f"cannot read {name}: {why}") from error


def _upright(source: str | Path | Image.Image, size: int) -> Image.Image:
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source)
    with Image.open(source) as file:
        if file.width * file.height > LARGE:
            file.draft(None, (2 * size, 2 * size))
        return ImageOps.exif_transpose(file)


def with_alpha(image: Image.Image) -> Image.Image:
    """Returns an image of any mode as RGB, or as RGBA if it has transparent parts.

    Raises:
        ValueError: its values have no known range.
    """
    if image.mode == "F":
        raise ValueError("floating-point images have no known range of values")
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values to 8 bits instead of scaling them.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"wanted 16-bit values, got {values.min()} to {values.max()}")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _from_array(x: np.ndarray) -> Image.Image:
    if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[-1] not in (3, 4)) or 0 in x.shape:
        raise ImageError(f"wanted an image array of h w, h w 3 or h w 4, got shape {x.shape}")
    if np.issubdtype(x.dtype, np.floating):
        low, high = float(x.min()), float(x.max())
        if not (low >= 0.0 and high <= 1.0):
            raise ImageError(f"wanted float pixels in [0, 1], got {low:g} to {high:g}")
        x = np.round(x.astype(np.float32) * 255.0).astype(np.uint8)
    if x.dtype != np.uint8:
        raise ImageError(f"wanted an image array of uint8 or floats, got {x.dtype}")
    image = Image.fromarray(x)
    return image if image.mode == "RGBA" else image.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side to `size`, the longer in proportion, and crops the centre."""
    w, h = image.size
    reach = LONGEST_ASPECT * min(w, h)
    if max(w, h) > reach:
        left, top = max(w - reach, 0) // 2, max(h - reach, 0) // 2
        image = image.crop((left, top, left + min(w, reach), top + min(h, reach)))
        w, h = image.size
    longer = int(size * max(w, h) / min(w, h))
    w, h = (longer, size) if w > h else (size, longer)
    image = image.resize((w, h), Image.Resampling.BILINEAR)
    left, top = round((w - size) / 2.0), round((h - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def on_white(image: Image.Image) -> Image.Image:
    """Returns an RGB or RGBA image as RGB, transparent parts as white."""
    if image.mode == "RGB":
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


@functools.lru_cache(maxsize=32)
def _resize_matrix(n: int, size: int) -> Float64[np.ndarray, "size n"]:
    """Returns R of `clip_pixels`: an axis of n pixels to `size` by `R @ x`."""
    return _cubic(n, size) @ _blur(n, max((n / size - 1.0) / 2.0, 0.001))


def _blur(n: int, sigma: float) -> Float64[np.ndarray, "n n"]:
    taps = int(max(4.0 * sigma, 3.0))
    taps += 1 - taps % 2
    kernel = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2.0 * sigma**2))
    sources = np.pad(np.arange(n), taps // 2, mode="reflect")
    return _scatter(
        np.lib.stride_tricks.sliding_window_view(sources, taps),
        np.broadcast_to(kernel / kernel.sum(), (n, taps)),
        n,
    )


def _cubic(n: int, size: int) -> Float64[np.ndarray, "size n"]:
    """Returns the weights of Keys' cubic convolution with a = -0.75 at aligned corners."""
    position = np.arange(size) * ((n - 1) / max(size - 1, 1))
    sources = np.floor(position).astype(int)[:, None] + np.arange(-1, 3)
    d, a = np.abs(position[:, None] - sources), -0.75
    near = ((a + 2.0) * d - (a + 3.0)) * d**2 + 1.0
    far = ((d - 5.0) * d + 8.0) * d * a - 4.0 * a
    return _scatter(np.clip(sources, 0, n - 1), np.where(d <= 1.0, near, far), n)


def _scatter(
    sources: np.ndarray, weights: Float[np.ndarray, "i k"], n: int
) -> Float64[np.ndarray, "i n"]:
    """Returns the matrix whose row i holds `weights[i]` in the columns `sources[i]`."""
    matrix = np.zeros((len(weights), n))
    np.add.at(matrix, (np.arange(len(weights))[:, None], sources), weights)
    return matrix
