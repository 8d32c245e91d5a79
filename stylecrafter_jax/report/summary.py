"""The few things about a run that one wants to know first."""

import datetime
import itertools
import math
from collections.abc import Iterator
from typing import Any

from stylecrafter_jax.report.curves import number
from stylecrafter_jax.report.facts import Facts
from stylecrafter_jax.train.console import duration

STARTS = ("started", "resumed")
ENDS = ("finished", "stopped", "save_failed", "lost_process")


def summary(facts: Facts) -> list[tuple[str, str]]:
    """Returns names and values; what the folder does not say is absent."""
    return list(_summary(facts))


def _summary(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "stage", str(facts.experiment.get("stage", "unknown"))
    total = (facts.experiment.get("train") or {}).get("steps", "?")
    last = facts.metrics[-1] if facts.metrics else {}
    yield "steps", f"{last.get('step', 0)} of {total}"
    yield "state", state(facts)
    yield "updates", health(facts)
    if facts.spikes:
        yield (
            "losses that stood out",
            f"{len(facts.spikes)}, the last at step {facts.spikes[-1]['step']}",
        )
    if isinstance(last.get("loss"), float):
        yield "loss, last", number(last["loss"])
    losses = [each.loss for each in facts.checkpoints if each.loss is not None]
    if losses:
        yield "loss, best checkpoint", number(min(losses))
    if facts.metrics:
        yield "time in steps", duration(seconds_in_steps(facts))
    starts = [row for row in facts.events if row.get("event") in STARTS]
    if starts:
        yield "begun", moment(starts[0].get("time"))
        yield "starts", str(len(starts))
        if cut := cut_off(facts):
            yield "ended without a word", f"{cut}: killed, or the host was lost"
        if "device_kind" in starts[-1]:
            yield "devices", f"{starts[-1].get('devices')} x {starts[-1]['device_kind']}"
    for name in ("images", "videos"):
        if f"speed/{name}" in last:
            yield f"{name} a second and chip", number(last[f"speed/{name}"])


def state(facts: Facts) -> str:
    """Returns whether a run is finished, stopped and why, or without a word of its end."""
    for row in reversed(facts.events):
        if row.get("event") == "finished":
            return "finished"
        if row.get("event") in ENDS:
            return f"{str(row['event']).replace('_', ' ')}: {row.get('reason', '')}"
        if row.get("event") in STARTS:
            return "running, or killed"
    return "unknown: the run has no events"


def cut_off(facts: Facts) -> int:
    """Returns how often a run was resumed although nothing says that it had ended."""
    told = [row["event"] for row in facts.events if row.get("event") in (*STARTS, *ENDS)]
    return sum(a in STARTS and b in STARTS for a, b in itertools.pairwise(told))


def health(facts: Facts) -> str:
    """Returns whether updates were finite."""
    last = facts.metrics[-1] if facts.metrics else {}
    if not facts.skipped:
        return "all finite" if facts.metrics else "none yet"
    text = f"{len(facts.skipped)} skipped, the last at step {facts.skipped[-1]['step']}"
    loss = last.get("loss")
    healthy = isinstance(loss, float) and math.isfinite(loss)
    return f"{text}; finite since" if healthy else f"{text}; not finite at the end"


def seconds_in_steps(facts: Facts) -> float:
    """Returns the time of all steps: of each line its seconds a step, times its steps."""
    total, before = 0.0, 0
    for row in facts.metrics:
        total += (row["step"] - before) * float(row.get("seconds") or 0.0)
        before = row["step"]
    return total


def moment(time: Any) -> str:
    """Returns an event's time to the second, such as "2025-01-31 12:00:00 UTC"."""
    try:
        there = datetime.datetime.fromisoformat(time).astimezone(datetime.UTC)
    except (TypeError, ValueError):
        return str(time)
    return there.strftime("%Y-%m-%d %H:%M:%S UTC")
