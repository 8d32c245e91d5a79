"""What happened to a run: its starts, stops and faults, in `RUN/events.jsonl`.

Metrics are a function of the steps alone, and a resumed run has those of one that never stopped.
Events are the history: nothing is ever removed. Each line has `time` (UTC), `event` and `step`, how
many steps were done then, and what else is to say:

started, resumed   what it runs on, see `environment`
stopped, finished  `reason` of a stop: a signal, or the error's one line
skipped            `loss`, `records`: an update that was not finite
save_failed        `reason`: a checkpoint could not be written; the run goes on
no_samples         `reason`: samples could not be made; the run goes on
lost_process       `process`, `reason`: another process of the run does not answer
"""

import contextlib
import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax

from stylecrafter_jax.train.json_lines import json_line, read_json_lines

EVENTS = "events.jsonl"
PACKAGES = ("stylecrafter_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
Event = Literal[
    "started",
    "resumed",
    "stopped",
    "finished",
    "skipped",
    "save_failed",
    "no_samples",
    "lost_process",
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
