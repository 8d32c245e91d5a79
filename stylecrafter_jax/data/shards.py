"""ArrayRecord shards in a folder: made in parallel, resumable, whole or not at all.

A finished folder holds `data-00000-of-00012.array_record` and so on; notes, a JSON file of settings
and totals; `refused.jsonl`, what cannot be used and why; and while it is being made
`done-00000.json` for every finished shard. A shard is written beside its final name and renamed.
"""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.files import whole, write_json, write_text
from stylecrafter_jax.foreign import JSONError, one_line, read_json

REFUSED_FILE = "refused.jsonl"
# Grain reads records one by one.
WRITER_OPTIONS = "group_size:1"


class Entry(NamedTuple):
    """What became of one record.

    Attributes:
        data: the bytes to store; None stores nothing.
        refused: id and reason, if the record cannot be used.
    """

    data: bytes | None
    refused: tuple[str, str] | None = None


Entries = Callable[[range], Generator[Entry, None, None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What came of it.

    Attributes:
        packed: usable records in the shards.
        refused: (id, reason) of each of the others.
        shards: number of shards.
        resumed: how many of them were there already.
        new: records looked at now, those of the other shards.
        bytes: their size.
    """

    packed: int
    refused: list[tuple[str, str]]
    shards: int
    resumed: int
    new: int
    bytes: int


class FinishedError(DataError):
    """The folder has all of its shards already."""


def write_shards(
    out: Path,
    notes: str,
    settings: dict[str, Any],
    entries: Entries,
    *,
    records: int,
    shard_size: int,
    threads: int = 1,
    progress: Callable[[int], object] = lambda records: None,
) -> Report:
    """Writes records as shards; run again, it does only what is missing.

    Args:
        out: a new or empty folder, or one that was begun with the same settings.
        notes: name of the JSON file of settings and totals.
        settings: everything that decides what is stored.
        entries: numbers of records -> what became of each, in the same order.
        records: how many there are.
        shard_size: records per shard.
        threads: shards made at a time.
        progress: called with a number of finished records.

    Raises:
        FinishedError: there is nothing left to do.
        DataError: the folder holds something else, no record can be used, or the disk is full.
    """
    if shard_size < 1 or threads < 1:
        raise ValueError(f"wanted shard_size and threads >= 1, got {shard_size}, {threads}")
    settings = {**settings, "records": records, "shard_size": shard_size}
    settings = json.loads(json.dumps(settings))  # as they will be read again
    count = -(-records // shard_size)
    _begin(out, notes, settings)
    shards = [
        _Shard(out, number, count, range(records)[number * shard_size :][:shard_size])
        for number in range(count)
    ]
    new = [len(shard.indices) for shard in shards if not shard.is_done()]
    lock, stop = threading.Lock(), threading.Event()

    def advance(records: int) -> None:
        if stop.is_set():
            raise _Stopped
        with lock:
            progress(records)

    pool = ThreadPoolExecutor(threads)
    try:
        jobs = [pool.submit(shard.make, entries, advance) for shard in shards]
        made = [job.result() for job in jobs]
    finally:  # after an error or Ctrl-C, unfinished shards are removed and finished ones stay
        stop.set()
        pool.shutdown(cancel_futures=True)
    return _finish(out / notes, settings, shards, made, new)


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

    def make(self, entries: Entries, advance: Callable[[int], None]) -> dict[str, Any]:
        """Returns the shard's notes, after writing it if they are not there yet."""
        if self.is_done():
            advance(len(self.indices))
            return read_notes(self.done)
        stored, refused = 0, []
        with whole(self.path) as partial:
            with _writer(partial) as write, contextlib.closing(entries(self.indices)) as made:
                for entry in made:
                    if entry.refused is not None:
                        refused.append(list(entry.refused))
                    if entry.data is not None:
                        write(entry.data)
                        stored += 1
                    advance(1)
            _verify(partial, stored)
        if not stored:
            self.path.unlink()
        notes = {"packed": len(self.indices) - len(refused), "refused": refused}
        write_json(self.done, notes)
        return notes


def _begin(out: Path, name: str, settings: dict[str, Any]) -> None:
    """Writes the settings, or checks that those in the folder are the same."""
    notes = out / name
    if notes.is_file():
        theirs = read_notes(notes)
        different = [name for name in settings if theirs.get(name) != settings[name]]
        if different:
            raise DataError(
                f"{out} was made with another {', '.join(different)}; choose a new folder"
            )
        if theirs.get("complete"):
            raise FinishedError(f"{out} is finished already")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(notes, {**settings, "complete": False})


def _finish(
    notes: Path,
    settings: dict[str, Any],
    shards: list[_Shard],
    made: list[dict[str, Any]],
    new: list[int],
) -> Report:
    refused = [(name, reason) for part in made for name, reason in part["refused"]]
    packed = sum(part["packed"] for part in made)
    if not packed:
        name, reason = refused[0]
        raise DataError(
            f"none of the {len(refused)} records can be used; the first is {name}: {reason}"
        )
    lines = [json.dumps({"id": n, "reason": r}, ensure_ascii=False) + "\n" for n, r in refused]
    write_text(notes.with_name(REFUSED_FILE), "".join(lines))
    kept = [shard for shard in shards if shard.path.exists()]
    totals = {"packed": packed, "refused": len(refused), "complete": True}
    write_json(notes, {**settings, **totals})
    for shard in shards:
        shard.done.unlink()
    size = sum(shard.path.stat().st_size for shard in kept)
    return Report(
        packed=packed,
        refused=refused,
        shards=len(kept),
        resumed=len(shards) - len(new),
        new=sum(new),
        bytes=size,
    )


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


def read_notes(path: Path) -> dict[str, Any]:
    """Returns a JSON object that was written with shards.

    Raises:
        DataError: it is damaged.
    """
    try:
        notes = read_json(path)
    except JSONError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(notes, dict):
        raise DataError(f"{path} is damaged: wanted an object, got {one_line(repr(notes))}")
    return notes
