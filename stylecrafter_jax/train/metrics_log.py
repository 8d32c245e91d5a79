"""A run's metrics: one JSON object a line, and TensorBoard."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from stylecrafter_jax.files import write_text

METRICS, SKIPPED = "metrics.jsonl", "skipped.jsonl"


class MetricsLog:
    """Appends metrics to `RUN/metrics.jsonl` in full precision, and to `RUN/tensorboard`.

    JSON has no NaN and no infinity: a value that is not finite is written as null.

    Args:
        run: the run's folder.
        step: the step a run continues from; later lines, of steps that will be done again, are
            dropped, so that the files are those of a run without a stop.
    """

    def __init__(self, run: Path, step: int = 0):
        for name in (METRICS, SKIPPED):
            _keep_until(run / name, step)
        self._metrics = (run / METRICS).open("a", encoding="utf-8")
        self._skipped = (run / SKIPPED).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line; it is on disk when this returns."""
        self._metrics.write(_line({"step": step, **metrics}))
        self._metrics.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def write_skipped(self, step: int, loss: float, index: list[int]) -> None:
        """Notes a step whose update was skipped, and which records were in its batch."""
        self._skipped.write(_line({"step": step, "loss": loss, "index": index}))
        self._skipped.flush()

    def write_image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Shows an image in TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes everything."""
        self._metrics.close()
        self._skipped.close()
        self._board.close()


def read_metrics(run: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics; a last line cut short by a crash is left out."""
    path = run / name
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _line(row: Mapping[str, Any]) -> str:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def _keep_until(path: Path, step: int) -> None:
    rows = [row for row in read_metrics(path.parent, path.name) if row["step"] <= step]
    write_text(path, "".join(_line(row) for row in rows))
