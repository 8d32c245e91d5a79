"""Any source to ArrayRecord shards: checked, in parallel, resumable, whole or not at all.

A packed folder holds `data-00000-of-00012.array_record` and so on; `pack.json`, the settings and
totals; `refused.jsonl`, what was left out and why; and while it is being made `done-00000.json` for
every finished shard. A shard is written beside its final name and renamed.
"""

import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from stylecrafter_jax.data.archives import PACK_FILE
from stylecrafter_jax.data.decode import decode_clip, decode_image
from stylecrafter_jax.data.records import BadRecord, DataError, Record, to_bytes
from stylecrafter_jax.data.sources import Source

REFUSED_FILE = "refused.jsonl"
# Grain reads records one by one.
WRITER_OPTIONS = "group_size:1"


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What came of packing.

    Attributes:
        packed: records in the shards.
        refused: (id, reason) of each record that was left out.
        shards: number of shards.
        resumed: how many of them were there already.
        bytes: their size.
    """

    packed: int
    refused: list[tuple[str, str]]
    shards: int
    resumed: int
    bytes: int


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
        DataError: the folder holds something else, no record can be used, or the disk is full.
    """
    if shard_size < 1 or threads < 1:
        raise ValueError(f"wanted shard_size and threads >= 1, got {shard_size}, {threads}")
    requirements = requirements or Requirements()
    count = -(-len(source) // shard_size)
    settings = {
        "source": source.name,
        "records": len(source),
        "shard_size": shard_size,
        "requirements": dataclasses.asdict(requirements),
    }
    _begin(out, settings)
    shards = [
        _Shard(out, number, count, range(len(source))[number * shard_size :][:shard_size])
        for number in range(count)
    ]
    resumed = sum(shard.is_done() for shard in shards)
    lock, stop = threading.Lock(), threading.Event()

    def advance(records: int) -> None:
        if stop.is_set():
            raise _Stopped
        with lock:
            progress(records)

    pool = ThreadPoolExecutor(threads)
    try:
        jobs = [pool.submit(shard.make, source, requirements, advance) for shard in shards]
        notes = [job.result() for job in jobs]
    finally:  # after an error or Ctrl-C, unfinished shards are removed and finished ones stay
        stop.set()
        pool.shutdown(cancel_futures=True)
    return _finish(out, settings, shards, notes, resumed)


class _Stopped(Exception):
    """Another shard failed."""


@dataclasses.dataclass(frozen=True)
class _Shard:
    out: Path
    number: int
    count: int
    indices: range

    @property
    def path(self) -> Path:
        return self.out / f"data-{self.number:05d}-of-{self.count:05d}.array_record"

    @property
    def done(self) -> Path:
        return self.out / f"done-{self.number:05d}.json"

    def is_done(self) -> bool:
        return self.done.is_file()

    def make(
        self, source: Source, requirements: Requirements, advance: Callable[[int], None]
    ) -> dict[str, Any]:
        """Returns the shard's notes, after writing it if they are not there yet."""
        if self.is_done():
            advance(len(self.indices))
            return json.loads(self.done.read_text(encoding="utf-8"))
        packed, refused = 0, []
        with _whole(self.path) as partial:
            with _writer(partial) as write:
                for index in self.indices:
                    try:
                        record = source[index]
                        check(record, requirements)
                    except BadRecord as error:
                        refused.append([source.id(index), str(error)])
                    else:
                        write(to_bytes(record))
                        packed += 1
                    advance(1)
            _verify(partial, packed)
        if not packed:
            self.path.unlink()
        notes = {"packed": packed, "refused": refused}
        _write_json(self.done, notes)
        return notes


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


def _begin(out: Path, settings: dict[str, Any]) -> None:
    """Writes the settings, or checks that those in the folder are the same."""
    notes = out / PACK_FILE
    if notes.is_file():
        theirs = json.loads(notes.read_text(encoding="utf-8"))
        different = [name for name in settings if theirs.get(name) != settings[name]]
        if different:
            raise DataError(
                f"{out} was packed with another {', '.join(different)}; choose a new folder"
            )
        if theirs.get("complete"):
            raise DataError(f"{out} is packed already")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    _write_json(notes, {**settings, "complete": False})


def _finish(
    out: Path,
    settings: dict[str, Any],
    shards: list[_Shard],
    notes: list[dict[str, Any]],
    resumed: int,
) -> Report:
    refused = [(name, reason) for note in notes for name, reason in note["refused"]]
    packed = sum(note["packed"] for note in notes)
    if not packed:
        name, reason = refused[0]
        raise DataError(
            f"none of the {len(refused)} records can be used; the first is {name}: {reason}"
        )
    lines = [json.dumps({"id": n, "reason": r}, ensure_ascii=False) + "\n" for n, r in refused]
    with _whole(out / REFUSED_FILE) as partial:
        partial.write_text("".join(lines), encoding="utf-8")
    kept = [shard for shard in shards if shard.path.exists()]
    totals = {"packed": packed, "refused": len(refused), "complete": True}
    _write_json(out / PACK_FILE, {**settings, **totals})
    for shard in shards:
        shard.done.unlink()
    size = sum(shard.path.stat().st_size for shard in kept)
    return Report(packed=packed, refused=refused, shards=len(kept), resumed=resumed, bytes=size)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yields a path to write to, moved to `path` in the end and removed if anything is raised."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yields a function that adds a record to a shard, which is closed in the end."""

    def attempt(action: Callable[..., Any], *args: Any) -> Any:
        try:
            return action(*args)
        except RuntimeError as error:
            reason = (str(error) or type(error).__name__).split(";")[0]
            raise DataError(f"cannot write a shard in {path.parent}: {reason}") from error

    writer = attempt(ArrayRecordWriter, str(path), WRITER_OPTIONS)
    try:
        yield lambda record: attempt(writer.write, record)
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the first error is the one to tell
            writer.close()
        raise
    attempt(writer.close)


def _verify(path: Path, records: int) -> None:
    """Checks a shard that was just written."""
    try:
        reader = ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
    except Exception as error:  # the reader raises plain exceptions of many kinds
        raise DataError(f"a shard in {path.parent} cannot be read back: {error}") from error
    if found != records:
        raise DataError(f"a shard in {path.parent} holds {found} of {records} records")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with _whole(path) as partial:
        partial.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", "utf-8")
