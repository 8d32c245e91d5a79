"""What watches a run while it trains; nothing of it changes what is trained."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from stylecrafter_jax.processes import leads
from stylecrafter_jax.train.console import Console
from stylecrafter_jax.train.events import History
from stylecrafter_jax.train.means import Means
from stylecrafter_jax.train.profiling import PROFILE, Profiler, Span
from stylecrafter_jax.train.spikes import Spikes
from stylecrafter_jax.train.throughput import Meter, memory, peak_flops

WATCHED = "watched"  # what they know, in a checkpoint beside the data's position


class Instruments(NamedTuple):
    """Instruments of one process; those of all but the first say and write nothing."""

    means: Means
    spikes: Spikes
    meter: Meter
    console: Console
    profiler: Profiler
    history: History

    def get_state(self) -> dict[str, Any]:
        """Returns what of them depends on the steps alone, as plain JSON values."""
        return {"means": self.means.get_state(), "spikes": self.spikes.get_state()}

    def measured(self) -> dict[str, float]:
        """Returns the metrics since the last call that depend on clock and machine."""
        return {**self.meter.values(), **memory()}


def open_instruments(
    stack: contextlib.ExitStack,
    run: Path,
    *,
    done: int,
    total: int,
    mesh: Mesh | None,
    means: Means,
    spikes: Spikes,
    progress: bool,
    profile: Span | None,
) -> Instruments:
    """Returns the instruments of a run that begins or goes on.

    Args:
        stack: what the run has open; closes them.
        run: its folder.
        done: steps done before.
        total: steps in all.
        mesh: its devices; None is one.
        means: of metrics of parts of batches.
        spikes: losses that stand out.
        progress: show a line on standard error.
        profile: steps of this process to profile; None profiles nothing.
    """
    chips = 1 if mesh is None else mesh.size
    console = Console(total, show=progress and leads(), chips=chips)
    stack.callback(console.close)
    profiler = Profiler(run / PROFILE, profile if leads() else None)
    stack.callback(profiler.close)
    history = History(run if leads() else None, done)
    history.begin({} if mesh is None else dict(mesh.shape))
    stack.enter_context(history)
    meter = Meter(chips=chips, peak=peak_flops())
    return Instruments(means, spikes, meter, console, profiler, history)
