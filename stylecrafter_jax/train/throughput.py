"""How fast a run is, and where its time goes: arithmetic on counts, seconds and a data sheet.

What is measured here depends on the clock and the machine, so it differs between a run and its
repetition; everything else that is logged does not.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from stylecrafter_jax.plan.chips import chip_here
from stylecrafter_jax.plan.count import count

GIGA, TERA = 1e9, 1e12
STATM = Path("/proc/self/statm")  # in pages: size, resident, ...
_MEASURED = re.compile(r"seconds$|(?:speed|memory|checkpoint)/")


def is_measured(name: str) -> bool:
    """Returns whether a metric depends on clock and machine, not on the steps alone."""
    return _MEASURED.match(name) is not None


class Work(NamedTuple):
    """What one step does, over all chips.

    Attributes:
        images: pictures of its batch.
        videos: clips of its batch.
        flops: operations of matrix products and convolutions.
    """

    images: int = 0
    videos: int = 0
    flops: float = 0.0

    def plus(self, other: "Work") -> "Work":
        """Returns the work of both."""
        images, videos, flops = other
        return Work(self.images + images, self.videos + videos, self.flops + flops)


def work(rows: int, pictures: bool, flops: float) -> Work:
    """Returns the work of a step on so many pictures or clips."""
    return Work(rows, 0, flops) if pictures else Work(0, rows, flops)


def step_flops(step: Any, *args: Any) -> float:
    """Returns the operations of a jitted step; 0 of a function that is not jitted.

    Called before the step it traces what the step then need not trace again; counting takes a tenth
    of a second for the full-size model. What `remat` computes twice counts twice.
    """
    trace = getattr(step, "trace", None)
    return 0.0 if trace is None else count(trace(*args).jaxpr.jaxpr).flops


def peak_flops() -> float | None:
    """Returns what a chip here can do a second, dense bfloat16; None of one without data sheet."""
    chip = chip_here()
    return None if chip is None else chip.flops


class Meter:
    """Adds up work and seconds between two lines of metrics.

    Args:
        chips: over which the run is spread.
        peak: operations a second that each can do, None if unknown.
        clock: seconds.
    """

    def __init__(
        self, *, chips: int, peak: float | None, clock: Callable[[], float] = time.perf_counter
    ):
        self._chips, self._peak, self._clock = chips, peak, clock
        self._saving: float | None = None  # since when a checkpoint is being written
        self._begin()

    def _begin(self) -> None:
        self._since = self._clock()
        self._steps, self._work = 0, Work()
        self._spent: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, what: str) -> Iterator[None]:
        """Adds the seconds inside to one of `data`, `compile`, `save` and `samples`."""
        begun = self._clock()
        try:
            yield
        finally:
            self._spent[what] = self._spent.get(what, 0.0) + self._clock() - begun
            if what == "save":
                self._saving = begun

    def add(self, work: Work) -> None:
        """Counts a step."""
        self._steps, self._work = self._steps + 1, self._work.plus(work)

    def look(self, saving: bool) -> None:
        """Notes whether a checkpoint is still being written; to be called at every step."""
        if self._saving is not None and not saving:
            self._spent["written"] = self._clock() - self._saving
            self._saving = None

    def values(self) -> dict[str, float]:
        """Returns the metrics since the last call, and begins anew; see docs/observing.md.

        Seconds of compiling and of making samples are no part of the time that rates refer to.
        """
        spent = self._spent
        aside = spent.get("compile", 0.0) + spent.get("samples", 0.0)
        seconds = max(self._clock() - self._since - aside, 1e-9)
        images, videos, flops = (x / seconds / self._chips for x in self._work)
        found = {
            "seconds": seconds / max(1, self._steps),
            "speed/data_wait": min(1.0, spent.get("data", 0.0) / seconds),
        }
        rates = {"speed/images": images, "speed/videos": videos, "speed/tflops": flops / TERA}
        found |= {name: rate for name, rate in rates.items() if rate}
        if flops and self._peak:
            found["speed/mfu"] = flops / self._peak
        kept = {
            "compile": "speed/compile",
            "samples": "speed/samples",
            "save": "checkpoint/blocked",
            "written": "checkpoint/written",
        }
        found |= {name: spent[key] for key, name in kept.items() if key in spent}
        self._begin()
        return found


def memory() -> dict[str, float]:
    """Returns gigabytes (1e9) in use: of the fullest chip here, and of this process in the host."""
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    found = {}
    for key, name in (("bytes_in_use", "in_use"), ("peak_bytes_in_use", "peak")):
        values = [each[key] for each in stats if key in each]
        if values:
            found[f"memory/{name}"] = max(values) / GIGA
    if STATM.exists():
        pages = int(STATM.read_text().split()[1])
        found["memory/host"] = pages * os.sysconf("SC_PAGE_SIZE") / GIGA
    return found
