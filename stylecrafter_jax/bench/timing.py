"""Programs timed: one alone, or several in turn, so that what else the machine does hits all."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax


class Timed(NamedTuple):
    """One program's times.

    Attributes:
        name: of the program.
        compile_seconds: until it was compiled; 0 where nothing was.
        seconds: of each run after the warm-up.
        flops: operations of a run; 0 where they are not known.
        bytes: moved at least, or handled.
        note: what else there is to say.
    """

    name: str
    compile_seconds: float
    seconds: list[float]
    flops: float = 0.0
    bytes: float = 0.0
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Runnable(NamedTuple):
    """What is timed.

    Attributes:
        name: of it.
        run: does it once and waits until it is done.
        compile_seconds: see `Timed`; likewise `flops` and `bytes`.
    """

    name: str
    run: Callable[[], Any]
    compile_seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    note: str = ""


def timed(runnables: Sequence[Runnable], repeat: int) -> list[Timed]:
    """Returns the times of several runnables that take turns, after one run each to warm up.

    Args:
        runnables: at least one.
        repeat: runs of each that are timed.
    """
    for each in runnables:
        jax.block_until_ready(each.run())
    seconds: list[list[float]] = [[] for _ in runnables]
    for turn in range(repeat):
        order = range(len(runnables)) if turn % 2 == 0 else reversed(range(len(runnables)))
        for i in order:
            begun = time.perf_counter()
            jax.block_until_ready(runnables[i].run())
            seconds[i].append(time.perf_counter() - begun)
    return [
        Timed(each.name, each.compile_seconds, times, each.flops, each.bytes, each.note)
        for each, times in zip(runnables, seconds, strict=True)
    ]
