"""Caption tables: JSON lines and CSV files that name media files and their captions."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.foreign import JSONError, one_line, parse_json

# The first of these names that a row has is taken.
FILE_KEYS = ("file", "file_name", "path", "image", "video")
CAPTION_KEYS = ("caption", "text", "prompt")
STYLE_KEYS = ("style", "style_path", "styles")
TABLE_NAMES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")


class Entry(NamedTuple):
    """One row: a media file, its caption as it stands there, and style images of its own."""

    file: str
    caption: Any
    styles: tuple[str, ...]


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: it cannot be read or is in another encoding; names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}; save it as UTF-8"
        ) from error


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, row) of a `.jsonl` or `.csv` file.

    Raises:
        DataError: a line is not what the suffix promises, or the file is not UTF-8.
    """
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                row.pop(None, None)  # pyright: ignore[reportArgumentType]  # cells without a column
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {one_line(error)}") from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except JSONError as error:
            raise DataError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: wanted an object, got {one_line(line, 60)}")
        yield number, row


def read_table(path: Path) -> list[Entry]:
    """Returns the rows of a caption table.

    A row names a file (`file`, `file_name`, `path`, `image` or `video`), its caption (`caption`,
    `text` or `prompt`) and, if it has any, style images (`style`, `style_path` or `styles`: one
    path or a list), all relative to the data's folder. A file may have several rows.

    Raises:
        DataError: the table is unreadable, or a row names no file.
    """
    entries = []
    for number, row in read_rows(path):
        file, caption, styles = (
            _first(row, keys) for keys in (FILE_KEYS, CAPTION_KEYS, STYLE_KEYS)
        )
        if not isinstance(file, str) or not file:
            raise DataError(
                f"{path}, line {number}: wanted a file under one of {', '.join(FILE_KEYS)}; "
                f"the row has {one_line(', '.join(map(str, row))) or 'nothing'}"
            )
        styles = [styles] if isinstance(styles, str) else styles or []
        if not isinstance(styles, list) or not all(isinstance(style, str) for style in styles):
            got = one_line(repr(styles), 60)
            raise DataError(f"{path}, line {number}: style must be paths, got {got}")
        styles = [style for style in styles if style]
        entries.append(Entry(file, caption, tuple(styles)))
    return entries


def _first(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)
