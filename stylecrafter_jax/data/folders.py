"""Folders of pictures and clips as random-access sources, WebVid's layout included."""

import errno
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from stylecrafter_jax.data.records import (
    LONGEST_ID,
    BadRecord,
    DataError,
    Record,
    check_caption,
    check_media,
    media_kind,
)
from stylecrafter_jax.data.tables import TABLE_NAMES, Entry, read_rows, read_table, read_text
from stylecrafter_jax.foreign import one_line

WEBVID_COLUMNS = ("videoid", "name")
_HALVES = re.compile("[\ud800-\udfff]")
_STYLE = re.compile(r"(.*)\.style\d*\.\w+$")


class FolderSource:
    """The pictures and clips below a folder, with captions beside them or in one table.

    Captions come from `captions`, else from `captions.jsonl`, `captions.csv`, `metadata.jsonl` or
    `metadata.csv` in the folder (see `tables.read_table`), else from a UTF-8 text file beside each
    picture: `cat.png` and `cat.txt`. A style reference of its own is `cat.style.png` (and
    `cat.style1.png`, ...), or named in the table. Rows of the table come first, then files without
    a row, both of which are kept: a file without caption and a row without file are refused when
    they are drawn, and counted.

    Everything but the media is read here, once. For millions of files, `stylecrafter data pack`
    makes shards that open at once.

    Raises:
        DataError: the folder has no media or no captions, or a caption file cannot be read.
    """

    def __init__(self, folder: str | Path, captions: str | Path | None = None):
        self.folder = Path(folder)
        self.name = self.folder.name or str(self.folder)
        if not self.folder.is_dir():
            raise DataError(f"there is no folder {self.folder}")
        files = _media_files(self.folder)
        table = _find_table(self.folder) if captions is None else Path(captions)
        rows = [] if table is None else read_table(table)
        styles = _styles_beside(files)
        used = {os.path.normpath(name) for row in rows for name in (row.file, *row.styles)}
        used.update(*styles.values())
        texts = [_text_beside(self.folder, file) if table is None else None for file in files]
        rows += [
            Entry(file, text, ())
            for file, text in zip(files, texts, strict=True)
            if file not in used
        ]
        self.entries = [
            row if row.styles else row._replace(styles=styles.get(_stem(row.file), ()))
            for row in rows
        ]
        if not self.entries:
            raise DataError(f"{self.folder} holds no pictures or videos")
        if all(entry.caption is None for entry in self.entries):
            raise DataError(
                f"none of the {len(self.entries)} files in {self.folder} has a caption; write each "
                "into a .txt file of the same name, or all into captions.jsonl or captions.csv"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def id(self, index: int) -> str:
        # A name on disk may be in no known encoding; reports must be able to print it.
        name = _HALVES.sub("\ufffd", self.entries[index].file)
        return one_line(name, LONGEST_ID)

    def __getitem__(self, index: int) -> Record:
        entry = self.entries[index]
        kind = media_kind(entry.file)
        if kind is None:
            suffix = one_line(Path(entry.file).suffix, 20)
            raise BadRecord(f"{suffix or 'no suffix'} is no picture or video")
        return Record(
            kind=kind,
            media=_read(self.folder / entry.file),
            caption=check_caption(entry.caption),
            id=self.id(index),
            styles=tuple(_read(self.folder / style) for style in entry.styles),
        )


class WebVidSource:
    """A table of clips as WebVid has it: columns `videoid`, `name` (the caption) and `page_dir`.

    The clip is `videos/page_dir/videoid.mp4`, or `videos/videoid.mp4`. Clips that were not
    downloaded are refused when they are drawn, and counted.

    Raises:
        DataError: the table is unreadable, has no rows, or lacks the columns.
    """

    def __init__(self, table: str | Path, videos: str | Path | None = None):
        table = Path(table)
        self.name = table.stem
        beside = table.parent / "videos"
        self.videos = Path(videos or (beside if beside.is_dir() else table.parent))
        self.rows: list[tuple[str, str, str | None]] = []
        for number, row in read_rows(table):
            if not row.get("videoid") or "name" not in row:
                raise DataError(
                    f"{table}, line {number}: wanted columns {' and '.join(WEBVID_COLUMNS)}, "
                    f"got {one_line(', '.join(map(str, row)))}"
                )
            self.rows.append((row["videoid"], row.get("page_dir") or "", row["name"]))
        if not self.rows:
            raise DataError(f"{table} has no rows")

    def __len__(self) -> int:
        return len(self.rows)

    def id(self, index: int) -> str:
        return one_line(self.rows[index][0], LONGEST_ID)

    def __getitem__(self, index: int) -> Record:
        video, page, caption = self.rows[index]
        return Record(
            kind="video",
            media=_read(self.videos / page / f"{video}.mp4", self.videos / f"{video}.mp4"),
            caption=check_caption(caption),
            id=self.id(index),
        )


def _media_files(folder: Path) -> list[str]:
    """Returns the media below a folder, relative to it, in the order of their names."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.relpath(os.path.join(parent, name), folder)
            for name in files
            if media_kind(name) and not name.startswith(".")
        ]
    return sorted(found)


def _find_table(folder: Path) -> Path | None:
    tables: Sequence[Path] = [folder / name for name in TABLE_NAMES if (folder / name).is_file()]
    if len(tables) > 1:
        names = " and ".join(path.name for path in tables)
        raise DataError(f"{folder} has {names}; say which one holds the captions")
    return tables[0] if tables else None


def _stem(file: str) -> str:
    return os.path.splitext(os.path.normpath(file))[0]


def _styles_beside(files: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns the style images named after a file, by its name without suffix."""
    styles: dict[str, tuple[str, ...]] = {}
    for file in files:
        if match := _STYLE.match(file):
            styles[match[1]] = (*styles.get(match[1], ()), file)
    return styles


def _text_beside(folder: Path, file: str) -> str | None:
    text = folder / f"{_stem(file)}.txt"
    return read_text(text).strip() if text.is_file() else None


def _read(*places: Path) -> bytes:
    """Returns the bytes of the first file that is there.

    That a name leads to no file is the record's fault; other errors, as of a broken disk, are not.
    """
    for path in places:
        try:
            # Reading a pipe or a device might never end.
            if stat.S_ISREG(path.stat().st_mode):
                return check_media(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
        except ValueError as error:
            if isinstance(error, BadRecord):
                raise
            raise BadRecord("its name can be no file's") from error
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
                raise
    raise BadRecord("the file is missing")
