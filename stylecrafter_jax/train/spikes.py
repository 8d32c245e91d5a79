"""Losses that stand out from those before them."""

import collections
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

WINDOW = 100  # losses of the same source that one is compared with
FEWEST = 20  # of fewer nothing can be said
# Of the logarithms: losses closer together than 2 % are alike.
LEAST_DEVIATION = 0.02
# The standard deviation of a normal distribution, in median absolute deviations.
_PER_MAD = 1.4826


class Spike(NamedTuple):
    """How a loss stands out: the median before it, and by how many deviations it is above."""

    median: float
    deviations: float


class Spikes:
    """Compares the logarithm of each loss with those of the last hundred steps on its source.

    The middle and the deviation are medians, so that spikes do not hide each other, and a loss that
    stays high is soon no spike. What is found depends on the steps alone, however often a run is
    stopped, if its checkpoints carry `get_state`.

    Args:
        limit: deviations from which a loss is a spike; None finds none.
    """

    def __init__(self, limit: float | None):
        self._limit = limit
        self._logs: dict[str, collections.deque[float]] = {}

    def look(self, source: str, loss: float) -> Spike | None:
        """Takes a finite loss into account; returns how it stands out, None if it does not."""
        log = math.log(max(loss, 1e-30))
        before = self._logs.setdefault(source, collections.deque(maxlen=WINDOW))
        found = None
        if self._limit is not None and len(before) >= FEWEST:
            median = float(np.median(before))
            mad = float(np.median(np.abs(np.array(before) - median)))
            deviations = (log - median) / max(_PER_MAD * mad, LEAST_DEVIATION)
            if deviations >= self._limit:
                found = Spike(math.exp(median), deviations)
        before.append(log)
        return found

    def get_state(self) -> dict[str, Any]:
        """Returns what the next losses are compared with, as plain JSON values."""
        return {source: list(logs) for source, logs in self._logs.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `get_state` returned."""
        self._logs = {source: collections.deque(logs, WINDOW) for source, logs in state.items()}
