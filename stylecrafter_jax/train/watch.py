"""What a run looks at after each step: losses, updates that were skipped, who wants to stop."""

import math
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from stylecrafter_jax.processes import gathered, leads
from stylecrafter_jax.train.means import Means
from stylecrafter_jax.train.metrics_log import MetricsLog
from stylecrafter_jax.train.step import FAILED, GO, HALT


class TrainingError(ValueError):
    """A run cannot go on; the message is one line that says why."""


class Watch:
    """Looks at each step's metrics, one step late so that the device never waits for the host.

    All processes of a run look at the same steps at the same places of their programs.

    Args:
        log: where skipped steps are noted; None on processes that write nothing.
        means: gets the metrics of parts of batches.
        max_skipped: so many updates skipped in a row end the run.

    Attributes:
        unhealthy: updates skipped in a row, up to the last step looked at.
        halt: what the processes said with the last step looked at; see `step.HALT`.
    """

    def __init__(self, log: MetricsLog | None, means: Means, max_skipped: int):
        self.unhealthy = 0
        self.halt = GO
        self._log, self._means, self._max_skipped = log, means, max_skipped
        self._waiting: tuple[int, Any, np.ndarray] | None = None
        self._values: dict[str, float] = {}
        self._losses: list[float] = []

    def add(self, step: int, metrics: Any, index: np.ndarray) -> None:
        """Takes a step's metrics, still being computed, and looks at those of the step before."""
        self.settle()
        self._waiting = (step, metrics, index)

    def settle(self) -> None:
        """Waits for the metrics taken last.

        Raises:
            TrainingError: too many steps in a row were skipped.
        """
        if self._waiting is None:
            return
        (step, metrics, index), self._waiting = self._waiting, None
        arrays = {name: np.asarray(value) for name, value in metrics.items()}
        self.halt = int(arrays.pop(HALT, GO))
        if self.halt == FAILED:
            return  # no process took this step
        values = self._means.add(arrays)
        self._values = values
        loss = values["loss"]
        if math.isfinite(loss) and math.isfinite(values["grad_norm"]):
            self.unhealthy = 0
            self._losses.append(loss)
            return
        self.unhealthy += 1
        records = [number for part in gathered(np.ravel(index).tolist()) for number in part]
        if self._log is not None:
            self._log.write_skipped(step, loss, records)
        if leads():
            tqdm.write(f"step {step} skipped: loss {loss}, records {records}", file=sys.stderr)
        if self.unhealthy >= self._max_skipped:
            raise TrainingError(
                f"the loss was not finite in {self.unhealthy} steps in a row, the last is {step}; "
                "earlier checkpoints are intact; try a lower optimizer.learning_rate"
            )

    def values(self) -> dict[str, float]:
        """Returns the last step's metrics, and the means of parts of batches."""
        self.settle()
        return {**self._values, **self._means.values()}

    def mean_loss(self) -> float:
        """Returns the mean loss of the healthy steps since the last call."""
        losses, self._losses = self._losses, []
        return float(np.mean(losses)) if losses else math.inf
