"""What a compiled program sends between devices."""

import collections
import math
import re
from typing import NamedTuple

from stylecrafter_jax.plan.compiled import COLLECTIVES

_MESSAGE = re.compile(rf"= (.+?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_ALONE = re.compile(r"replica_groups=\{\{\d+\}(,\{\d+\})*\}")  # each device with itself
_ARRAY = re.compile(r"\b[a-z]+\d*\[([\d,]*)\]")
_NAME = re.compile(r'op_name="([^"]*)"')


class Message(NamedTuple):
    """One message: its kind, the values that a device has of it, and the operation it is for."""

    kind: str
    values: int
    name: str


def messages(text: str) -> list[Message]:
    """Returns the messages of a program, as `compiled.as_text()` writes it."""
    found = []
    for line in text.splitlines():
        message, name = _MESSAGE.search(line), _NAME.search(line)
        if message and not _ALONE.search(line):
            shapes = [map(int, filter(None, x.split(","))) for x in _ARRAY.findall(message[1])]
            values = sum(math.prod(shape) for shape in shapes)
            found.append(Message(message[2], values, name[1] if name else ""))
    return found


def sent(text: str) -> collections.Counter[str]:
    """Returns how many messages of each kind a program sends."""
    return collections.Counter(message.kind for message in messages(text))
