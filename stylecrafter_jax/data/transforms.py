"""Records to training examples: target and style crops, frames, tokens, dropped conditions."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stylecrafter_jax.data.captions import RULES, flip_is_safe
from stylecrafter_jax.data.decode import decode_clip, decode_image
from stylecrafter_jax.data.records import BadRecord, Record
from stylecrafter_jax.tokenizer import Tokenizer

Size = tuple[int, int]  # height, width


class Pictures(NamedTuple):
    """What a record shows.

    Attributes:
        pixels: the target frames.
        style: its style references.
        fps: frames per second of the target; 0 of a picture.
        caption: the cleaned caption.
    """

    pixels: UInt8[np.ndarray, "f h w 3"]
    style: UInt8[np.ndarray, "r s s 3"]
    fps: float
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drop:
    """How often a training example loses a condition; at most one of the three happens.

    Attributes:
        text: chance that the caption is dropped.
        style: chance that the style is dropped.
        both: chance that both are.
    """

    text: float = 0.0
    style: float = 0.0
    both: float = 0.0

    def __post_init__(self):
        chances = (self.text, self.style, self.both)
        if min(chances) < 0 or sum(chances) > 1:
            raise ValueError(f"drop chances must be positive and sum to at most 1, got {chances}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """Makes one example of one record; all randomness comes from the generator it is given.

    The target is resized until it covers `size` and its centre is cropped. The style is a random
    square of the same picture (of a random frame of the same clip), or of the record's own style
    images, resized to a shorter side of `style_short_side`: a large crop keeps the style but
    overlaps less with the content.

    Attributes:
        tokenizer: makes the token ids.
        size: height and width of the target.
        frames: frames of the target; with 1, a clip gives a random one of its frames.
        stride: smallest and largest space between frames, in frames of the file.
        references: style images per example.
        style_short_side: shorter side of the style before its crop.
        style_size: side of the style crop.
        flip: chance that target and style are mirrored, where the caption allows it.
        captions: `clean`, `released` or `none`; see `captions.RULES`.
        drop: chances to drop conditions.
        min_side: records with a shorter side are refused.
        max_aspect: records whose longer side is more than this times the shorter are refused.

    Source: StyleCrafter paper, section 4.1; StyleCrafter-SDXL, dataset.py, preprocess, and
    config/train/style_crafter_sdxl_512.yaml.
    """

    tokenizer: Tokenizer
    size: Size = (512, 512)
    frames: int = 1
    stride: tuple[int, int] = (1, 1)
    references: int = 1
    style_short_side: int = 800
    style_size: int = 512
    flip: float = 0.0
    captions: str = "clean"
    drop: Drop = Drop()
    min_side: int = 8
    max_aspect: float = 16.0

    def __post_init__(self):
        if min(*self.size, self.frames, self.references, self.style_size, self.stride[0]) < 1:
            raise ValueError("size, frames, stride, references and style_size must be at least 1")
        if self.stride[0] > self.stride[1]:
            raise ValueError(f"stride must be the smallest and the largest, got {self.stride}")
        if self.style_short_side < self.style_size:
            raise ValueError(
                f"style_short_side {self.style_short_side} must be at least style_size "
                f"{self.style_size}"
            )
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"flip must be a chance from 0 to 1, got {self.flip}")
        if self.captions not in RULES:
            raise ValueError(f"captions must be one of {', '.join(RULES)}, got {self.captions!r}")

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        """Returns `pixels`, `style`, `ids`, `fps`, `drop_text` and `drop_style` of an example.

        Raises:
            BadRecord: the record cannot be decoded, or is too small, narrow or short.
        """
        drop_text, drop_style = drop_flags(self.drop, rng)
        pictures = self.pictures(record, rng)
        return {
            "pixels": pictures.pixels,
            "style": pictures.style,
            "ids": self.tokenizer([pictures.caption])[0],
            "fps": np.float32(pictures.fps),
            "drop_text": np.bool_(drop_text),
            "drop_style": np.bool_(drop_style),
        }

    def pictures(self, record: Record, rng: np.random.Generator) -> Pictures:
        """Returns what the example shows; see `__call__`."""
        flip = rng.random() < self.flip and flip_is_safe(record.caption)
        smallest = max(*self.size, self.style_short_side)
        frames, fps = self._frames(record, smallest, rng)
        w, h = frames[0].size
        if min(h, w) < self.min_side:
            raise BadRecord(f"{h}x{w} pixels, wanted at least {self.min_side} on a side")
        if max(h, w) > self.max_aspect * min(h, w):
            raise BadRecord(f"{h}x{w} pixels are narrower than 1 to {self.max_aspect:g}")
        pixels = np.stack([centre_crop(frame, self.size) for frame in frames])
        crops = [
            random_crop(image, self.style_short_side, self.style_size, rng)
            for image in self._references(record, frames, rng)
        ]
        style = np.stack(crops)
        if flip:
            pixels, style = pixels[:, :, ::-1], style[:, :, ::-1]
        return Pictures(pixels, style, fps, RULES[self.captions](record.caption))

    def _frames(
        self, record: Record, smallest: int, rng: np.random.Generator
    ) -> tuple[list[Image.Image], float]:
        if record.kind == "video":
            frames, fps = decode_clip(record.media, self.frames, self.stride, rng)
            return frames, fps if self.frames > 1 else 0.0
        if self.frames > 1:
            raise BadRecord(f"a picture, wanted a video of {self.frames} frames")
        return [decode_image(record.media, smallest)], 0.0

    def _references(
        self, record: Record, frames: Sequence[Image.Image], rng: np.random.Generator
    ) -> list[Image.Image]:
        if record.styles:
            order = rng.permutation(len(record.styles))
            chosen = [record.styles[order[k % len(order)]] for k in range(self.references)]
            return [decode_image(style, self.style_short_side) for style in chosen]
        return [frames[i] for i in rng.integers(0, len(frames), self.references)]


def cover_size(height: int, width: int, size: Size) -> Size:
    """Returns the smallest height and width of the same shape that cover `size`.

    For a square this is torchvision's resize of the shorter side; the other side is cut to whole
    pixels.
    """
    h, w = size
    if height * w <= width * h:
        return h, h * width // height
    return w * height // width, w


def centre_offset(size: Size, crop: Size) -> tuple[int, int]:
    """Returns top and left of the centre crop, rounded down."""
    return (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2


def centre_crop(image: Image.Image, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image resized to cover `size`, then its centre."""
    resized = cover_size(image.height, image.width, size)
    return crop_resized(image, resized, centre_offset(resized, size), size)


def random_crop(
    image: Image.Image, short_side: int, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    """Returns a random square of the image resized to a shorter side of `short_side`."""
    h, w = cover_size(image.height, image.width, (short_side, short_side))
    top, left = rng.integers(0, (h - size + 1, w - size + 1))
    return crop_resized(image, (h, w), (int(top), int(left)), (size, size))


def crop_resized(
    image: Image.Image, resized: Size, offset: tuple[int, int], size: Size
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a crop of an image resized bilinearly, computing only the crop.

    Args:
        image: an RGB image.
        resized: height and width the whole image would have.
        offset: top and left of the crop in it.
        size: height and width of the crop.
    """
    (top, left), (h, w) = offset, size
    y, x = image.height / resized[0], image.width / resized[1]
    bottom, right = min((top + h) * y, image.height), min((left + w) * x, image.width)
    box = (left * x, top * y, right, bottom)
    return np.asarray(image.resize((w, h), Image.Resampling.BILINEAR, box=box))


def drop_flags(drop: Drop, rng: np.random.Generator) -> tuple[bool, bool]:
    """Returns whether the text and whether the style of an example is dropped."""
    draw = rng.random()
    if draw < drop.both:
        return True, True
    draw -= drop.both
    return draw < drop.text, drop.text <= draw < drop.text + drop.style
