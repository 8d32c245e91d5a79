"""Files of one JSON object a line, whose last line a crash may have cut short."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stylecrafter_jax.files import finite
from stylecrafter_jax.foreign import JSONError, parse_json


def json_line(row: Mapping[str, Any]) -> str:
    """Returns an object as a line of `finite` JSON."""
    return json.dumps(finite(row), allow_nan=False) + "\n"


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a file; a line cut short is left out, an absent file has none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(JSONError):
            row = parse_json(line)
            rows += [row] if isinstance(row, dict) else []
    return rows


class LineFile:
    """A file that grows by whole lines: a line that does not fit on a full disk is taken back.

    Args:
        path: the file; made if absent.

    Attributes:
        waiting: lines that could not be written yet.
    """

    def __init__(self, path: Path):
        self.waiting: list[bytes] = []
        self._path = path
        self._file = path.open("ab", buffering=0)

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row, after those that wait; it is on disk when this returns.

        Raises:
            OSError: it cannot be written and waits.
        """
        self.waiting.append(json_line(row).encode())
        self.flush()

    def flush(self) -> None:
        """Writes the rows that wait.

        Raises:
            OSError: one cannot be written and waits; names the file.
        """
        while self.waiting:
            size = os.fstat(self._file.fileno()).st_size
            left = self.waiting[0]
            try:
                while left:  # what does not fit is refused once the rest is written
                    left = left[self._file.write(left) :]
            except OSError as error:
                os.ftruncate(self._file.fileno(), size)
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            del self.waiting[0]
        os.fsync(self._file.fileno())  # a mounted bucket shows others nothing before

    def close(self) -> None:
        """Closes the file, whatever waits."""
        self._file.close()
