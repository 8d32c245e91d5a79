"""A contact sheet: one row per video, its references and some of its frames."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from stylecrafter_jax.media.video import contact_sheet
from stylecrafter_jax.metrics.measures import Case

FRAMES = 4
ROWS = 16
TALLEST = 160


def shown(count: int) -> list[int]:
    """Returns which of `count` videos get a row: all, or evenly spaced ones."""
    return np.linspace(0, count - 1, min(count, ROWS)).round().astype(int).tolist()


def sheet(cases: Sequence[Case]) -> UInt8[np.ndarray, "y x 3"]:
    """Returns the sheet; all cells have the shape of the first video's frames."""
    h, w = cases[0].frames.shape[1:3]
    factor = min(1.0, TALLEST / h)
    h, w = max(1, round(h * factor)), max(1, round(w * factor))
    columns = min(FRAMES, max(len(case.frames) for case in cases))
    rows = []
    for case in cases:
        number = min(columns, len(case.frames))
        chosen = np.linspace(0, len(case.frames) - 1, number).round().astype(int)
        cells = [_references(case.references, h, w)]
        cells += [_fitted(case.frames[i], h, w) for i in chosen]
        cells += [np.full((h, w, 3), 255, np.uint8)] * (columns - number)
        rows.append(np.stack(cells))
    return contact_sheet(np.concatenate(rows), 1 + columns)


def _references(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], h: int, w: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns references side by side in one cell."""
    edges = np.linspace(0, w, len(images) + 1).round().astype(int).tolist()
    parts = [
        _fitted(image, h, max(1, right - left))
        for image, left, right in zip(images, edges[:-1], edges[1:], strict=True)
    ]
    return np.concatenate(parts, axis=1)[:, :w]


def _fitted(image: UInt8[np.ndarray, "_ _ 3"], h: int, w: int) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a whole image inside h x w, on white."""
    padded = ImageOps.pad(Image.fromarray(image), (w, h), color="white")
    return np.asarray(padded)
