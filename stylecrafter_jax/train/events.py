"""What happened to a run: its starts, stops and faults, in `RUN/events.jsonl`.

Metrics are a function of the steps alone, and a resumed run has those of one that never stopped.
Events are the history: nothing is ever removed. Each line has `time` (UTC), `event` and `step`, how
many steps were done then, and what else is to say:

started, resumed   what it runs on, see `environment`; `mesh` of several devices
finished           all steps are done
stopped            `reason`: a signal, or the error's one line
save_failed        `reason`: a checkpoint could not be written, which ends the run
not_saved          `reason`: likewise, but the run goes on (`train.on_save_error`)
lost_process       `reason`: another process of the run is gone, which ends the run
no_samples         `reason`: samples could not be made; the run goes on

A run that was killed has no line of its end. Updates that were skipped have a file of their own,
`skipped.jsonl`, since a run without a stop skips the same.
"""

import contextlib
import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax

from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from stylecrafter_jax.processes import lost_another
from stylecrafter_jax.train.json_lines import json_line, read_json_lines

EVENTS = "events.jsonl"
LONGEST_REASON = 500
PACKAGES = ("stylecrafter_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
Event = Literal[
    "started",
    "resumed",
    "stopped",
    "finished",
    "save_failed",
    "not_saved",
    "lost_process",
    "no_samples",
]


def note(run: Path, event: Event, step: int, /, **fields: Any) -> None:
    """Appends an event to a run's history; it is on disk when this returns.

    Of a run of several processes one writes; lines of two would not mix, but would be there twice.

    Args:
        run: the run's folder, which exists.
        event: what happened.
        step: steps done by then.
        fields: plain JSON values.

    Raises:
        OSError: it cannot be written. Who is about to report a worse error suppresses this one.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = json_line({"time": now, "event": event, "step": step, **fields})
    with (run / EVENTS).open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            # What a crash cut short stays, as a line of its own that `read_events` leaves out.
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_events(run: Path) -> list[dict[str, Any]]:
    """Returns a run's history, oldest first; a line that a crash cut short is left out."""
    return read_json_lines(run / EVENTS)


class History:
    """Notes how a run begins and, as a context, how it ends.

    Args:
        run: its folder; None notes nothing.
        step: steps done before.

    Attributes:
        step: steps done by now; for the loop to set.
    """

    def __init__(self, run: Path | None, step: int):
        self.step = step
        self._run = run
        self._ended = False

    def note(self, event: Event, /, **fields: Any) -> None:
        """Notes an event at this step; see `note`."""
        if self._run is not None:
            note(self._run, event, self.step, **fields)

    def begin(self, mesh: dict[str, int]) -> None:
        """Notes a start, or that a run goes on."""
        if self._run is not None:
            event = "resumed" if read_events(self._run) else "started"
            self.note(event, **environment(), mesh=mesh)

    def end(self, finished: bool) -> None:
        """Notes that all steps are done, or that a signal stopped the run."""
        self._ended = True
        if finished:
            self.note("finished")
        else:
            self.note("stopped", reason="signal")

    def __enter__(self) -> "History":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: object) -> None:
        if error is None or self._ended:
            return
        event: Event = "stopped"
        if isinstance(error, CheckpointError):
            event = "save_failed"
        elif lost_another(error):
            event = "lost_process"
        reason = " ".join(str(error).split()) or type(error).__name__
        with contextlib.suppress(OSError):  # the error itself is what the user must see
            self.note(event, reason=reason[:LONGEST_REASON])


def environment() -> dict[str, Any]:
    """Returns what this process runs on: devices, processes, versions of Python and packages."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "system": platform.platform(),
        "versions": versions,
    }
