"""A run's metrics: one JSON object a line, and TensorBoard."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore  # generated

from stylecrafter_jax.files import write_text
from stylecrafter_jax.foreign import JSONError, parse_json
from stylecrafter_jax.train.json_lines import json_line
from stylecrafter_jax.train.wandb_log import WandbLog

METRICS, SKIPPED, BOARD = "metrics.jsonl", "skipped.jsonl", "tensorboard"


class MetricsLog:
    """Appends metrics to `RUN/metrics.jsonl` in full precision, and to `RUN/tensorboard`.

    JSON has no NaN and no infinity: a value that is not finite is written as null.

    Args:
        run: the run's folder.
        step: the step a run continues from; later lines, of steps that will be done again, are
            dropped, so that the files are those of a run without a stop.
        mirror: gets metrics and images as well.

    Raises:
        OSError: a file cannot be written, here or in a method; it is named.
    """

    def __init__(self, run: Path, step: int = 0, mirror: WandbLog | None = None):
        for name in (METRICS, SKIPPED):
            _keep_until(run / name, step)
        self._run, self._mirror = run, mirror
        self._metrics = (run / METRICS).open("a", encoding="utf-8")
        self._skipped = (run / SKIPPED).open("a", encoding="utf-8")
        self._board = _Board(run / BOARD, step + 1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line; it is on disk when this returns."""
        with _naming(self._run / METRICS):
            self._metrics.write(json_line({"step": step, **metrics}))
            self._metrics.flush()
        with _naming(self._run / BOARD):
            self._board.add(step, *(summary.scalar(*pair) for pair in metrics.items()))
        if self._mirror is not None:
            self._mirror.write(step, metrics)

    def write_skipped(self, step: int, loss: float, index: list[int]) -> None:
        """Notes a step whose update was skipped, and which records were in its batch."""
        with _naming(self._run / SKIPPED):
            self._skipped.write(json_line({"step": step, "loss": loss, "index": index}))
            self._skipped.flush()

    def write_image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Shows an image in TensorBoard."""
        with _naming(self._run / BOARD):
            self._board.add(step, summary.image(name, image, dataformats="HWC"))
        if self._mirror is not None:
            self._mirror.write_image(step, name, image)

    def close(self) -> None:
        """Closes everything; each line was on disk, or refused, when it was written."""
        for file in (self._metrics, self._skipped, self._board):
            with contextlib.suppress(OSError):
                file.close()
        if self._mirror is not None:
            self._mirror.close()


class _Board:
    """One of TensorBoard's event files, written at once.

    tensorboardX's `SummaryWriter` writes in a thread, which a full disk ends unheard; after ten
    more events the run would wait for it forever.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(step=first_step, wall_time=time.time(), session_log=start))

    def add(self, step: int, *summaries: Any) -> None:
        """Writes summaries of a step."""
        for content in summaries:
            self._file.write_event(Event(step=step, wall_time=time.time(), summary=content))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(run: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics; a last line cut short by a crash is left out.

    Raises:
        ValueError: a line is damaged; names it.
    """
    path, rows = run / name, []
    if not path.exists():
        return rows
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except JSONError as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"{path}, line {number} is damaged: it has no step")
        rows.append(row)
    return rows


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file in errors of writing to it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _keep_until(path: Path, step: int) -> None:
    rows = [row for row in read_metrics(path.parent, path.name) if row["step"] <= step]
    write_text(path, "".join(json_line(row) for row in rows))
