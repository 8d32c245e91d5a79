"""Any source to ArrayRecord shards of its records, checked; see `shards` for the folder."""

import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np

from stylecrafter_jax.data.archives import PACK_FILE
from stylecrafter_jax.data.decode import decode_clip, decode_image
from stylecrafter_jax.data.records import BadRecord, Record, to_bytes
from stylecrafter_jax.data.shards import Entry, Report, write_shards
from stylecrafter_jax.data.sources import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a record must have to be packed.

    Attributes:
        min_side: pixels of the shorter side.
        max_aspect: longer side over shorter side, at most.
        min_frames: frames of a video.
        decode: whether pictures and the first `min_frames` frames of videos are decoded; otherwise
            only captions and files are looked at.
    """

    min_side: int = 8
    max_aspect: float = 16.0
    min_frames: int = 1
    decode: bool = True


def pack(
    source: Source,
    out: Path,
    *,
    shard_size: int = 1000,
    requirements: Requirements | None = None,
    threads: int = 4,
    progress: Callable[[int], object] = lambda records: None,
) -> Report:
    """Writes the records of a source as shards; run again, it does only what is missing.

    Args:
        source: of `Record`s.
        out: a new or empty folder, or one that was begun with the same source and settings.
        shard_size: records of the source per shard.
        requirements: records that do not meet them are refused.
        threads: shards made at a time; decoders release the interpreter's lock.
        progress: called with a number of finished records.

    Raises:
        DataError: the folder is finished or holds something else, no record can be used, or the
            disk is full.
    """
    wanted = requirements or Requirements()

    def entries(indices: range) -> Generator[Entry, None, None]:
        for index in indices:
            try:
                record = source[index]
                check(record, wanted)
            except BadRecord as error:
                yield Entry(None, (source.id(index), str(error)))
            else:
                yield Entry(to_bytes(record))

    return write_shards(
        out,
        PACK_FILE,
        {"source": source.name, "requirements": dataclasses.asdict(wanted)},
        entries,
        records=len(source),
        shard_size=shard_size,
        threads=threads,
        progress=progress,
    )


def check(record: Record, requirements: Requirements) -> None:
    """Checks that a record can be trained on.

    Raises:
        BadRecord: it cannot be decoded, or does not meet the requirements.
    """
    if not requirements.decode:
        return
    rng = np.random.default_rng(0)
    if record.kind == "image":
        frames = [decode_image(record.media, requirements.min_side)]
    else:
        frames, _ = decode_clip(record.media, requirements.min_frames, (1, 1), rng)
    w, h = frames[0].size
    if min(h, w) < requirements.min_side:
        raise BadRecord(f"{h}x{w} pixels, wanted at least {requirements.min_side} on a side")
    if max(h, w) > requirements.max_aspect * min(h, w):
        raise BadRecord(f"{h}x{w} pixels are narrower than 1 to {requirements.max_aspect:g}")
    for style in record.styles:
        decode_image(style, requirements.min_side)
