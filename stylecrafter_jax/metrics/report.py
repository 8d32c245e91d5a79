"""Values of many videos to one line per metric: mean, confidence interval, counts.

An item is a dict with `entry`, the number of its prompt, and `scores`, value by name; whatever
else it holds is left alone. Samples of one prompt are averaged before anything else, so that a
prompt counts once and the interval is that of drawing other prompts. Entries of a list that share
a reference are taken for independent, so the interval is too narrow where they are not.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stylecrafter_jax.files import write_json
from stylecrafter_jax.metrics.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Interval,
    mean_interval,
)
from stylecrafter_jax.metrics.measures import Metric
from stylecrafter_jax.metrics.table import write_markdown


class Row(NamedTuple):
    """One metric over all items.

    Attributes:
        name: the metric.
        mean: over entries; NaN if no item has a finite value.
        interval: of the mean; None of fewer than two entries.
        entries: entries with a finite value.
        items: items with a finite value.
        missing: items whose value is not finite, or that have none.
    """

    name: str
    mean: float
    interval: Interval | None
    entries: int
    items: int
    missing: int


def summarise(items: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Row]:
    """Returns a row for each of the names."""
    return [_row(items, name) for name in names]


def _row(items: Sequence[Mapping[str, Any]], name: str) -> Row:
    by_entry: dict[int, list[float]] = {}
    for item in items:
        value = item["scores"].get(name)
        if value is not None and math.isfinite(value):
            by_entry.setdefault(item["entry"], []).append(value)
    means = [math.fsum(values) / len(values) for values in by_entry.values()]
    count = sum(map(len, by_entry.values()))
    return Row(
        name=name,
        mean=math.fsum(means) / len(means) if means else math.nan,
        interval=mean_interval(means) if means else None,
        entries=len(means),
        items=count,
        missing=len(items) - count,
    )


def write_report(
    folder: Path,
    items: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Metric],
    notes: Mapping[str, Any],
) -> list[Path]:
    """Writes `metrics.md` and `metrics.json`, and returns their paths.

    Args:
        folder: where to; it exists.
        items: see the module.
        metrics: the metrics to report, in this order.
        notes: what measured them, and of what; plain JSON values by name.
    """
    rows = summarise(items, list(metrics))
    lines = [_cells(row, metrics[row.name]) for row in rows]
    header = ("metric", "better", "mean", f"{CONFIDENCE:.0%} interval", "prompts", "videos")
    missing = [f"{metrics[r.name].title}: {r.missing} without value" for r in rows if r.missing]
    markdown, strict = folder / "metrics.md", folder / "metrics.json"
    write_markdown(markdown, header, lines, {**notes, **({"missing": missing} if missing else {})})
    write_json(
        strict,
        {
            "metrics": {row.name: _object(row, metrics[row.name]) for row in rows},
            "bootstrap": {"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED},
            "notes": dict(notes),
        },
    )
    return [markdown, strict]


def _cells(row: Row, metric: Metric) -> tuple[str, ...]:
    interval = "–" if row.interval is None else "{:.4g} to {:.4g}".format(*row.interval)
    mean = f"{row.mean:.4g}" if math.isfinite(row.mean) else "–"
    return metric.title, metric.better, mean, interval, str(row.entries), str(row.items)


def _object(row: Row, metric: Metric) -> dict[str, Any]:
    low, high = row.interval or (None, None)
    counts = {"prompts": row.entries, "videos": row.items, "missing": row.missing}
    described = {"title": metric.title, "better": metric.better}
    return {**described, "mean": row.mean, "low": low, "high": high, **counts}
