"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a path to write to, moved to `path` in the end and removed if anything is raised."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8, whole; what is no Unicode, as a file name may be, is escaped."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
