"""The streams of batches of a run: pictures, videos, or both in a fixed proportion."""

import dataclasses
from typing import Any

import numpy as np

from stylecrafter_jax.config import ConfigError, ModelConfig
from stylecrafter_jax.data.features import FeatureTransform, is_features, read_notes
from stylecrafter_jax.data.pipeline import Stream
from stylecrafter_jax.data.records import DataError, Record
from stylecrafter_jax.data.sources import open_source
from stylecrafter_jax.data.transforms import Drop, Transform
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train.experiment import DataConfig
from stylecrafter_jax.world.scenes import SIZE
from stylecrafter_jax.world.source import WORLD, WorldTransform, open_world


@dataclasses.dataclass(frozen=True)
class WithoutStyle:
    """A transform whose examples have no style reference, for stages that use none."""

    transform: Transform

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        """Returns the transform's example without `style` and `drop_style`."""
        example = self.transform(record, rng)
        return {k: v for k, v in example.items() if k not in ("style", "drop_style")}


def check_size(data: DataConfig, config: ModelConfig) -> None:
    """Refuses a target size that the model's grids do not divide."""
    for name, value in (("height", data.height), ("width", data.width)):
        if value % config.size_multiple:
            raise ConfigError(
                f"data.{name} must be a multiple of {config.size_multiple} for this model, got "
                f"{value}"
            )


def make_streams(data: DataConfig, tokenizer: Tokenizer, *, styled: bool) -> list[Stream]:
    """Returns the streams of a run, pictures first; a picture is a clip of one frame.

    Raises:
        DataError: a source cannot be opened.
    """

    def stream(source: str, frames: int, batch_size: int, weight: float) -> Stream:
        if source.startswith(WORLD):
            return world_stream(source, data, tokenizer, frames, batch_size, weight, styled=styled)
        if is_features(source):
            return feature_stream(source, data.drop, batch_size, weight, styled=styled)
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


def feature_stream(
    folder: str, drop: Drop, batch_size: int, weight: float, *, styled: bool
) -> Stream:
    """Returns the stream of a folder that `stylecrafter data encode` made.

    Raises:
        DataError: the folder is damaged or not finished.
    """
    source, notes = open_source(folder), read_notes(folder)
    if len(source) != notes["records"]:
        raise DataError(f"{folder} has {len(source)} of its {notes['records']} records")
    return Stream(
        source=source,
        transform=FeatureTransform(layout=notes["layout"], styled=styled, drop=drop),
        batch_size=batch_size,
        weight=weight,
        variants=notes["epochs"],
    )


def world_stream(
    spec: str,
    data: DataConfig,
    tokenizer: Tokenizer,
    frames: int,
    batch_size: int,
    weight: float,
    *,
    styled: bool,
) -> Stream:
    """Returns the stream of a source of the demo world.

    Raises:
        DataError: there is no such source, or it shows something else than the run wants.
    """
    if data.height != data.width or data.height > SIZE:
        raise DataError(
            f"pictures of {spec} have {SIZE}x{SIZE} pixels, of which a run may take squares; "
            f"data.height and data.width are {data.height} and {data.width}"
        )
    source = open_world(spec, frames=max(frames, 2))
    if source.kind.clips != (frames > 1):
        shown, wanted = ("clips", "images") if source.kind.clips else ("pictures", "videos")
        raise DataError(f"{spec} shows {shown}, it cannot be data.{wanted}")
    transform = WorldTransform(
        tokenizer=tokenizer,
        drop=data.drop,
        references=data.references if styled else 0,
        side=data.height,
    )
    return Stream(source=source, transform=transform, batch_size=batch_size, weight=weight)
