"""What others wrote: JSON that may be broken or hostile, and their texts quoted in messages."""

import json
from pathlib import Path
from typing import Any

QUOTED = 200


class JSONError(ValueError):
    """A text is no JSON; the message is the reason, in one short line."""


def one_line(text: object, length: int = QUOTED) -> str:
    """Returns a text for a message: one line without control characters, cut at `length`."""
    # Four times as much is enough of any text, however long it is.
    words = " ".join(str(text)[: 4 * length].split())
    shown = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in words[:length]
    )
    return shown if len(words) <= length else f"{shown}..."


def reason(error: BaseException, length: int = QUOTED) -> str:
    """Returns what an error says as `one_line`, or its kind if it says nothing."""
    return one_line(error, length) or type(error).__name__


def parse_json(data: str | bytes) -> Any:
    """Returns the value of a JSON text, which may begin with a byte order mark.

    Raises:
        JSONError: it is not UTF-8 or not JSON (`NaN` and `Infinity` are not), is nested too
            deeply, or has a number of thousands of digits.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
        return json.loads(text, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise JSONError(
            f"not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"
        ) from error
    except RecursionError as error:
        raise JSONError("nested too deeply") from error
    except ValueError as error:
        raise JSONError(one_line(error)) from error


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file.

    Raises:
        JSONError: it is no JSON; see `parse_json`.
        OSError: it cannot be read.
    """
    return parse_json(path.read_bytes())


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
