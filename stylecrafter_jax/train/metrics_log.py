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
from stylecrafter_jax.train.json_lines import LineFile, json_line
from stylecrafter_jax.train.wandb_log import WandbLog

METRICS, SKIPPED, SPIKES = "metrics.jsonl", "skipped.jsonl", "spikes.jsonl"
LINES, BOARD = (METRICS, SKIPPED, SPIKES), "tensorboard"


class MetricsLog:
    """Appends metrics to `RUN/metrics.jsonl` in full precision, and to `RUN/tensorboard`.

    JSON has no NaN and no infinity: a value that is not finite is written as null.

    Args:
        run: the run's folder.
        step: the step a run continues from; later lines, of steps that will be done again, are
            dropped, so that the files are those of a run without a stop.
        mirror: gets metrics and images as well.
        patient: lines that a full disk has no room for wait for the next one, or for `close`;
            TensorBoard goes without them.

    Raises:
        OSError: a file cannot be written, here or in a method; it is named.
    """

    def __init__(
        self,
        run: Path,
        step: int = 0,
        mirror: WandbLog | None = None,
        *,
        patient: bool = False,
    ):
        for name in LINES:
            _keep_until(run / name, step)
        self._run, self._mirror, self._patient = run, mirror, patient
        self._lines = {name: LineFile(run / name) for name in LINES}
        self._board: _Board | None = _Board(run / BOARD, step + 1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line; it is on disk when this returns, or waits if the log is patient."""
        self.note(METRICS, {"step": step, **metrics})
        self._show(step, *(summary.scalar(*pair) for pair in metrics.items()))
        if self._mirror is not None:
            self._mirror.write(step, metrics)

    def note(self, name: str, row: Mapping[str, Any]) -> None:
        """Writes a row to one of `LINES`."""
        try:
            self._lines[name].write(row)
        except OSError:
            if not self._patient:
                raise

    def write_image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Shows an image in TensorBoard."""
        self._show(step, summary.image(name, image, dataformats="HWC"))
        if self._mirror is not None:
            self._mirror.write_image(step, name, image)

    def close(self) -> None:
        """Closes everything.

        Raises:
            OSError: lines that waited cannot be written.
        """
        try:
            for file in self._lines.values() if self._patient else ():
                file.flush()
        finally:
            for file in self._lines.values():
                file.close()
            if self._board is not None:
                with contextlib.suppress(OSError):
                    self._board.close()
            if self._mirror is not None:
                self._mirror.close()

    def _show(self, step: int, *summaries: Any) -> None:
        """Adds summaries to TensorBoard's file, or to another where that one is damaged."""
        try:
            with _naming(self._run / BOARD):
                self._board = self._board or _Board(self._run / BOARD, step)
                self._board.add(step, *summaries)
        except OSError:
            self._board = None
            if not self._patient:
                raise


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
