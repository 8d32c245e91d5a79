"""What a run looks at after each step: losses, skipped updates, spikes, who wants to stop."""

import math
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from stylecrafter_jax.processes import leads
from stylecrafter_jax.train.feed import Feed
from stylecrafter_jax.train.means import Means
from stylecrafter_jax.train.metrics_log import SKIPPED, SPIKES, MetricsLog
from stylecrafter_jax.train.spikes import Spikes
from stylecrafter_jax.train.step import FAILED, GO, HALT

LISTED = 8  # records of a batch on the console; files have all


class TrainingError(ValueError):
    """A run cannot go on; the message is one line that says why."""


class Watch:
    """Looks at each step's metrics, one step late so that the device never waits for the host.

    All processes of a run look at the same steps at the same places of their programs.

    Args:
        log: where skipped steps and spikes are noted; None on processes that write nothing. What
            cannot be written ends the run.
        means: gets the metrics of parts of batches.
        spikes: finds losses that stand out.
        feed: names the batches.
        max_skipped: so many updates skipped in a row end the run.

    Attributes:
        unhealthy: updates skipped in a row, up to the last step looked at.
        halt: what the processes said with the last step looked at; see `step.HALT`.
    """

    def __init__(
        self, log: MetricsLog | None, means: Means, spikes: Spikes, feed: Feed, max_skipped: int
    ):
        self.unhealthy = 0
        self.halt = GO
        self._log, self._means, self._spikes, self._feed = log, means, spikes, feed
        self._max_skipped = max_skipped
        self._waiting: tuple[int, Any, np.ndarray] | None = None
        self._values: dict[str, float] = {}
        self._losses: list[float] = []
        self._mean_loss = math.inf

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
            self._look(step, values, index)
            return
        self.unhealthy += 1
        names = self._feed.names(step, index)
        self._note(SKIPPED, {"step": step, "loss": loss, **names})
        _say(f"step {step} skipped: loss {loss}, of {_listed(names)}")
        if self.unhealthy >= self._max_skipped:
            raise TrainingError(
                f"the loss was not finite in {self.unhealthy} steps in a row, the last is {step}; "
                "earlier checkpoints are intact; try a lower optimizer.learning_rate"
            )

    def _look(self, step: int, values: dict[str, float], index: np.ndarray) -> None:
        """Notes a loss that stands out."""
        loss = values["loss"]
        found = self._spikes.look(self._feed.source(step), loss)
        if found is None:
            return
        names, measured = self._feed.names(step, index), found._asdict()
        row = {"step": step, "loss": loss, "grad_norm": values["grad_norm"], **measured, **names}
        self._note(SPIKES, row)
        _say(
            f"step {step}: the loss is {loss:.4g}, where {found.median:.4g} was usual, of "
            f"{_listed(names)}; --replay {step} shows more"
        )

    def _note(self, name: str, row: dict[str, Any]) -> None:
        if self._log is None:
            return
        try:
            self._log.note(name, row)
        except OSError as error:
            self._feed.fail(error)

    def values(self) -> dict[str, float]:
        """Returns the last step's metrics, and the means of parts of batches."""
        self.settle()
        return {**self._values, **self._means.values()}

    def mean_loss(self) -> float:
        """Returns the mean loss of the healthy steps since the last call, or what that returned."""
        if self._losses:
            self._mean_loss, self._losses = float(np.mean(self._losses)), []
        return self._mean_loss


def _say(line: str) -> None:
    if leads():
        tqdm.write(line, file=sys.stderr)


def _listed(names: dict[str, Any]) -> str:
    """Returns a batch's records for a line of text."""
    listed = ", ".join(names["records"][:LISTED])
    more = len(names["records"]) - LISTED
    return f"{names['source']}: {listed}" + (f" and {more} more" if more > 0 else "")
