"""The streams of batches of a run: pictures, videos, or both in a fixed proportion."""

import dataclasses
from typing import Any

import numpy as np

from stylecrafter_jax.data.pipeline import Stream
from stylecrafter_jax.data.records import Record
from stylecrafter_jax.data.sources import open_source
from stylecrafter_jax.data.transforms import Transform
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train.experiment import DataConfig


@dataclasses.dataclass(frozen=True)
class WithoutStyle:
    """A transform whose examples have no style reference, for stages that use none."""

    transform: Transform

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        """Returns the transform's example without `style` and `drop_style`."""
        example = self.transform(record, rng)
        return {k: v for k, v in example.items() if k not in ("style", "drop_style")}


def make_streams(data: DataConfig, tokenizer: Tokenizer, *, styled: bool) -> list[Stream]:
    """Returns the streams of a run, pictures first; a picture is a clip of one frame.

    Raises:
        DataError: a source cannot be opened.
    """

    def stream(source: str, frames: int, batch_size: int, weight: float) -> Stream:
        transform = Transform(
            tokenizer=tokenizer,
            size=(data.height, data.width),
            frames=frames,
            stride=data.stride,
            references=data.references,
            style_short_side=data.style_short_side,
            style_size=data.style_size,
            flip=data.flip,
            captions=data.captions,
            drop=data.drop,
        )
        return Stream(
            source=open_source(source),
            transform=transform if styled else WithoutStyle(transform),
            batch_size=batch_size,
            weight=weight,
        )

    share = data.image_share if data.images and data.videos else 0.5
    streams = []
    if data.images:
        streams.append(stream(data.images, 1, data.image_batch, share))
    if data.videos:
        streams.append(stream(data.videos, data.frames, data.video_batch, 1.0 - share))
    return streams
