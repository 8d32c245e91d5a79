"""Pictures inside of a page, small enough to send."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

SIDE = 1400  # pixels of the longer side, at most
BUDGET = 3_000_000  # bytes of all pictures of a page, about
QUALITIES = (90, 75, 55, 35)
T = TypeVar("T")


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Returns at most `count` items, evenly chosen, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    last = len(items) - 1
    return [items[round(i * last / (count - 1))] for i in range(count)]


def data_uri(path: Path, budget: int) -> str:
    """Returns a picture as JPEG in a data URI of about so many bytes at most.

    Raises:
        OSError: it cannot be read.
    """
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    while True:
        for quality in QUALITIES:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality, subsampling=0 if quality > 80 else 2)
            text = base64.b64encode(buffer.getvalue()).decode()
            if len(text) <= budget:
                return f"data:image/jpeg;base64,{text}"
        if max(picture.size) < 64:
            return f"data:image/jpeg;base64,{text}"
        picture.thumbnail((picture.width // 2, picture.height // 2))
