"""Files of one JSON object a line, whose last line a crash may have cut short."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stylecrafter_jax.foreign import JSONError, parse_json


def json_line(row: Mapping[str, Any]) -> str:
    """Returns an object as a line; JSON has no NaN and no infinity, which become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


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
