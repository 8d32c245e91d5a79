"""What a run says on its way: one calm line."""

import sys
import time
from collections.abc import Callable, Mapping
from io import TextIOBase

from tqdm import tqdm

EVERY = 60.0  # seconds between lines where these stay, as in a file


def progress_line(step: int, total: int, values: Mapping[str, float], chips: int = 1) -> str:
    """Returns one line on a run: how far, loss, speed of all chips, waiting for data, time left.

    Args:
        step: steps done.
        total: steps in all.
        values: the metrics logged last; what is absent is not mentioned.
        chips: over which the run is spread.
    """
    parts = [f"step {step}/{total}"]
    if "loss" in values:
        parts.append(f"loss {values['loss']:.4f}")
    for name in ("images", "videos"):
        if f"speed/{name}" in values:
            parts.append(f"{values[f'speed/{name}'] * chips:.3g} {name}/s")
    if "speed/data_wait" in values:
        parts.append(f"{values['speed/data_wait']:.0%} waiting for data")
    if "seconds" in values and step < total:
        parts.append(f"{duration(values['seconds'] * (total - step))} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Returns a time in its two largest units, such as "3 h 12 min"."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    left, parts = round(seconds), []
    for name, size in units:
        if left >= size or (parts and len(parts) < 2):
            parts.append(f"{left // size} {name}")
            left %= size
        if len(parts) == 2:
            break
    return " ".join(parts) or "0 s"


class Console:
    """Shows a run's progress line: in place on a terminal, else as a line a minute.

    Messages in between go through `tqdm.write`, which puts them above the line.

    Args:
        total: steps in all.
        show: False says nothing.
        chips: over which the run is spread.
        file: where to; standard error.
        clock: seconds.
    """

    def __init__(
        self,
        total: int,
        *,
        show: bool,
        chips: int = 1,
        file: TextIOBase | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._file = sys.stderr if file is None else file
        self._total, self._chips, self._clock = total, chips, clock
        self._plain = show and not self._file.isatty()
        self._next = -1.0
        self._values: Mapping[str, float] = {}
        self._bar = tqdm(
            bar_format="{desc}", file=self._file, disable=not show or self._plain, leave=True
        )

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Takes note of a step that is done, and of the metrics if they were logged."""
        if values is not None:
            self._values = values
        line = progress_line(step, self._total, self._values, self._chips)
        if not self._plain:
            self._bar.set_description_str(line, refresh=False)
            self._bar.update()
        elif self._values and (self._clock() >= self._next or step == self._total):
            self._next = self._clock() + EVERY
            print(line, file=self._file, flush=True)

    def close(self) -> None:
        """Leaves the last line where it is."""
        if not self._bar.disable:
            self._bar.refresh()
        self._bar.close()
