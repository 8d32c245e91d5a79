"""Archives as random-access sources: ArrayRecord shards and WebDataset tars."""

import io
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from grain.sources import ArrayRecordDataSource

from stylecrafter_jax.data.features import FEATURES_FILE
from stylecrafter_jax.data.records import (
    LONGEST_ID,
    BadRecord,
    DataError,
    Record,
    check_caption,
    check_media,
    from_bytes,
    media_kind,
)
from stylecrafter_jax.data.shards import read_notes
from stylecrafter_jax.data.tables import CAPTION_KEYS
from stylecrafter_jax.foreign import JSONError, one_line, parse_json, reason

ARRAY_RECORD = re.compile(r"\.(array_?record|ar)(-\d+-of-\d+)?$")
_NUMBERED = re.compile(r"-(\d+)-of-(\d+)(?!\d)")
PACK_FILE = "pack.json"
MOST_SHARDS = 1_000_000
# WebDataset's caption members; the first that a sample has is taken.
CAPTION_MEMBERS = ("txt_blip", "txt", "caption", "text", "json")
_STYLE = re.compile(r"style\d*\.")


class ArrayRecordSource:
    """ArrayRecord shards, as `stylecrafter data pack` and `data encode` write them.

    Args:
        paths: the shards, or one folder of them.
        read: bytes -> record, which has an `id`; raises `BadRecord`.

    Raises:
        DataError: there is no shard, one is damaged or missing, or the folder was not finished.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        read: Callable[[bytes], Any] = from_bytes,
    ):
        self._read = read
        if isinstance(paths, str | Path):
            self.name = Path(paths).name
            folder, paths = Path(paths), _shards(Path(paths))
        else:
            self.name = Path(paths[0]).parent.name
            folder = None
        try:
            self._shards: Any = ArrayRecordDataSource([str(path) for path in paths])
        except Exception as error:  # the reader raises plain exceptions of many kinds
            which, why = _first_broken(paths), reason(error)
            raise DataError(f"cannot read the shards of {self.name}, {which}: {why}") from error
        if not len(self._shards):
            raise DataError(f"the shards of {self.name} hold no records")
        if folder is not None and folder.is_dir():
            _check_whole(folder, paths, len(self._shards))

    def __len__(self) -> int:
        return len(self._shards)

    def id(self, index: int) -> str:
        try:
            return one_line(self[index].id, LONGEST_ID)
        except BadRecord:
            return f"record {index}"

    def __getitem__(self, index: int) -> Any:
        try:
            data = self._shards[index]
        except Exception as error:  # as above; a checksum that does not fit ends here
            raise BadRecord(f"cannot read the shard: {reason(error)}") from error
        return self._read(data)


class TarSource:
    """WebDataset tars: files of one name but the suffix, one after the other, are a sample.

    A sample has a picture or clip, a caption (`.txt_blip`, `.txt`, `.caption`, `.text`, or one of
    the keys `caption`, `text`, `prompt` in `.json`) and perhaps style images (`.style.jpg`,
    `.style1.png`). Headers are read once, here; then a sample is read by its place in the file. A
    tar that is cut off keeps one sample for its missing end, which is refused and counted.

    Args:
        paths: the tars, or one folder of them. They must not be compressed.

    Raises:
        DataError: there is no sample, or a file is no plain tar.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path]):
        if isinstance(paths, str | Path):
            self.name = Path(paths).name
            folder = Path(paths)
            paths = sorted(folder.glob("*.tar")) if folder.is_dir() else [folder]
        else:
            self.name = Path(paths[0]).parent.name
        self._tars = [Path(path) for path in paths]
        with ThreadPoolExecutor(16) as pool:
            indices = list(pool.map(_index_tar, self._tars))
        # Flat arrays, since millions of small objects would fill the memory of every worker.
        samples = [(n, key, sample) for n, tar in enumerate(indices) for key, sample in tar]
        if not any(sample for _, _, sample in samples):
            raise DataError(f"the tars of {self.name} hold no samples")
        members = [member for _, _, sample in samples for member in sample]
        kinds = sorted({member.suffix for member in members})
        numbers = {suffix: number for number, suffix in enumerate(kinds)}
        self._suffixes = tuple(kinds)
        self._tar_of = np.array([number for number, _, _ in samples], np.int32)
        self._ends = np.cumsum([len(sample) for _, _, sample in samples])
        self._places = np.array([(m.offset, m.size) for m in members], np.int64).reshape(-1, 2)
        self._suffix_of = np.array([numbers[m.suffix] for m in members], np.int32)
        self._keys = "".join(key for _, key, _ in samples)
        self._key_ends = np.cumsum([len(key) for _, key, _ in samples])

    def __len__(self) -> int:
        return len(self._tar_of)

    def id(self, index: int) -> str:
        begin = self._key_ends[index - 1] if index else 0
        key = self._keys[begin : self._key_ends[index]]
        return one_line(f"{self._tars[self._tar_of[index]].name}/{key}", LONGEST_ID)

    def __getitem__(self, index: int) -> Record:
        begin = self._ends[index - 1] if index else 0
        rows = range(begin, self._ends[index])
        members = {self._suffixes[self._suffix_of[row]]: self._places[row] for row in rows}
        if not members:
            raise BadRecord("the tar is cut off or damaged here")
        media = [s for s in members if media_kind(f".{s}") and not _STYLE.match(s)]
        if len(media) != 1:
            found = one_line(", ".join(members))
            raise BadRecord(f"wanted one picture or video in the sample, got {found}")
        kind = media_kind(f".{media[0]}")
        assert kind is not None
        path = self._tars[self._tar_of[index]]
        styles = sorted(s for s in members if _STYLE.match(s) and media_kind(f".{s}") == "image")
        captions = [s for s in CAPTION_MEMBERS if s in members]
        with _open_tar(path) as file:

            def read(suffix: str) -> bytes:
                offset, size = map(int, members[suffix])
                file.seek(offset)
                data = file.read(size)
                if len(data) < size:
                    raise BadRecord(f"the tar is cut off inside its .{one_line(suffix, 20)}")
                return data

            return Record(
                kind=kind,
                media=check_media(read(media[0])),
                caption=_caption(captions[0], read(captions[0]))
                if captions
                else check_caption(None),
                id=self.id(index),
                styles=tuple(check_media(read(style)) for style in styles),
            )


class _Bounded(io.BufferedReader):
    """A file that never makes room for more bytes than it has, whatever a header asks for."""

    def __init__(self, raw: io.FileIO):
        super().__init__(raw)
        self.length = os.fstat(raw.fileno()).st_size

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return super().seek(min(offset, self.length), whence)

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.length if size is None or size < 0 else min(size, self.length))


def _open_tar(path: Path) -> _Bounded:
    """Opens a tar for reading.

    Raises:
        BadRecord: it is gone; another trouble with the disk is no record's fault.
    """
    try:
        return _Bounded(io.FileIO(path))
    except FileNotFoundError as error:
        raise BadRecord("the tar is missing") from error


class _Member(NamedTuple):
    suffix: str
    offset: int
    size: int


def _index_tar(path: Path) -> list[tuple[str, list[_Member]]]:
    """Returns (key, members) of the samples of a tar; one without members stands for a cut end."""
    samples: list[tuple[str, list[_Member]]] = []
    try:
        with _Bounded(io.FileIO(path)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                # Nothing is unpacked, so names lead nowhere; of links, devices and files with holes
                # the tar has no content to read.
                if not info.isreg() or info.issparse() or not stem or info.size < 0:
                    continue
                key = f"{folder}/{stem}".lstrip("./").encode("utf-8", "replace").decode("utf-8")
                if not samples or samples[-1][0] != key:
                    samples.append((key, []))
                size = min(info.size, file.length + 1)  # of a lie, enough to be found out
                samples[-1][1].append(_Member(suffix.lower(), info.offset_data, size))
            ended = _has_end(path, tar.offset)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        if _is_compressed(path):
            raise DataError(f"{path} is compressed, so samples have no place; unpack it") from error
        ended = False
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if not ended:
        # A sample whose last member is cut off refuses itself; else one more stands for the rest.
        size = path.stat().st_size
        if not samples or all(m.offset + m.size <= size for m in samples[-1][1]):
            samples.append(("(cut off)", []))
    return samples


def _has_end(path: Path, offset: int) -> bool:
    """Returns whether the empty block that ends every tar is there; tarfile does not insist."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _caption(suffix: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
        if suffix != "json":
            return check_caption(text)
        values: Any = parse_json(text)
    except UnicodeDecodeError as error:
        raise BadRecord(f"its .{suffix} is not UTF-8 (byte {error.start})") from error
    except JSONError as error:
        raise BadRecord(f"its .json is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadRecord(f"its .json must be an object, got {one_line(text, 60)}")
    return check_caption(next((values[key] for key in CAPTION_KEYS if key in values), None))


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = (
        sorted(p for p in path.iterdir() if ARRAY_RECORD.search(p.name)) if path.is_dir() else []
    )
    if not found:
        raise DataError(f"{path} holds no ArrayRecord shards")
    for notes in (path / PACK_FILE, path / FEATURES_FILE):
        if notes.is_file() and not read_notes(notes).get("complete"):
            raise DataError(f"{path} was not finished; run the command that made it again")
    return found


def _first_broken(paths: Sequence[str | Path]) -> str:
    """Returns the name of the first shard that cannot be opened alone."""
    for path in paths:
        try:
            ArrayRecordReader(str(path)).close()
        except Exception:  # as above
            return Path(path).name
    return "all together"


def _check_whole(folder: Path, paths: Sequence[str | Path], records: int) -> None:
    """Raises DataError if a folder has not all of its shards; names those that are missing."""
    wanted = None
    for name, key in ((PACK_FILE, "packed"), (FEATURES_FILE, "records")):
        if (folder / name).is_file():
            wanted = read_notes(folder / name).get(key)
    if wanted == records:
        return  # a shard that would have had no record is not written
    names = {Path(path).name for path in paths}
    absent = set()
    for name in names:
        if match := _NUMBERED.search(name):
            number, count = match.groups()
            whole = range(min(int(count), MOST_SHARDS))
            found = (f"-{i:0{len(number)}d}-of-{count}" for i in whole)
            absent |= {name[: match.start()] + one + name[match.end() :] for one in found} - names
            break  # the others differ in their number alone
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise DataError(f"{folder} lacks its shard {min(absent)}{more}")
    if wanted is not None:
        raise DataError(f"{folder} has {records} of its {one_line(wanted)} records")
