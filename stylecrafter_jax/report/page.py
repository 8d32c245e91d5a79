"""A run as one page that needs nothing else: no network, no script."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from stylecrafter_jax.report.curves import Curve, chart, number
from stylecrafter_jax.report.facts import Facts, Row
from stylecrafter_jax.report.look import STYLE
from stylecrafter_jax.report.markup import Markup, element, empty, joined, table
from stylecrafter_jax.report.pictures import BUDGET, data_uri, evenly
from stylecrafter_jax.report.summary import moment, summary

GRIDS, LISTED = 8, 30
ENVIRONMENT = ("device_kind", "devices", "processes", "mesh", "system")


class Chart(NamedTuple):
    """Which metrics share a drawing: those whose name the pattern matches, less its group."""

    title: str
    pattern: str
    smooth: bool = True
    log: bool = True


CHARTS = (
    Chart("Loss", r"(loss|unweighted_loss)"),
    Chart("Unweighted loss by timestep", r"loss_t/(.+)"),
    Chart("Norm of the gradient", r"(grad_norm)"),
    Chart("Learning rate", r"(learning_rate)", smooth=False, log=False),
    Chart("Factor on the style branch by layer", r"scale/(.+)"),
    Chart("Pictures and clips a second and chip", r"speed/(images|videos)", smooth=False),
    Chart("TFLOP/s a chip", r"speed/(tflops)", smooth=False),
    Chart("Share of the chip's peak", r"speed/(mfu)", smooth=False),
    Chart("Share of the time that waits for data", r"speed/(data_wait)", smooth=False, log=False),
    Chart("Seconds a step", r"(seconds)", smooth=False),
    Chart("Memory, GB", r"memory/(.+)", smooth=False),
    Chart("Seconds of compiling, samples and checkpoints", r"(?:speed|checkpoint)/(.+)", False),
)
UNCHARTED = ("step", "skipped")


def page(facts: Facts) -> str:
    """Returns a run as HTML."""
    sections = [
        element("header", element("h1", facts.name), _tiles(summary(facts))),
        _section("Curves", _curves(facts)),
        _section("Samples", _samples(facts)),
        _section("Checkpoints", _checkpoints(facts)),
        _section("Faults and stops", _history(facts)),
        _section("Config", _config(facts)),
        _section("Environment", _environment(facts)),
    ]
    head = joined(
        [
            empty("meta", charset="utf-8"),
            empty("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("title", f"{facts.name}: training report"),
            element("style", Markup(STYLE)),
        ]
    )
    body = element("main", *sections)
    whole = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _section(title: str, *content: str) -> Markup:
    return element("section", element("h2", title), *content)


def _tiles(pairs: Iterable[tuple[str, str]]) -> Markup:
    entries = [element("div", element("dt", name), element("dd", value)) for name, value in pairs]
    return element("dl", *entries, class_="tiles")


def _curves(facts: Facts) -> Markup:
    if not facts.metrics:
        return element("p", "No metrics were logged yet.")
    names = list(dict.fromkeys(name for row in facts.metrics for name in row))
    left = [name for name in names if name not in UNCHARTED]
    marks = [row["step"] for row in facts.events if row.get("event") == "resumed"]
    charts = []
    for each in CHARTS:
        own = {name: match[1] for name in left if (match := re.fullmatch(each.pattern, name))}
        if all(re.fullmatch(r"\d+-\d+", label) for label in own.values()):
            own = dict(sorted(own.items(), key=lambda pair: int(pair[1].split("-")[0])))
        left = [name for name in left if name not in own]
        charts.append((each, own))
    charts += [(Chart(name, ""), {name: name}) for name in left]
    cards = []
    for each, own in charts:
        curves = _distinct(Curve(own[name], _points(facts.metrics, name)) for name in own)
        if curves:
            drawing = chart(curves, marks, smooth=each.smooth, log=each.log)
            cards.append(element("figure", element("figcaption", each.title), drawing))
    note = "Steps from left to right; a curve of many lines is pale, with its running mean over it."
    if marks:
        note += " Dashed: the run was resumed."
    return joined([element("p", note), element("div", *cards, class_="cards")])


def _distinct(curves: Iterable[Curve]) -> list[Curve]:
    """Returns the curves that have points; of equal ones a single one with all their names."""
    found: list[Curve] = []
    for curve in curves:
        same = next((i for i, other in enumerate(found) if other.points == curve.points), None)
        if same is not None:
            found[same] = Curve(f"{found[same].name}, {curve.name}", curve.points)
        elif curve.points:
            found.append(curve)
    return found


def _points(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
    values = [(row["step"], row.get(name)) for row in rows]
    return [(s, float(v)) for s, v in values if isinstance(v, int | float)]


def _samples(facts: Facts) -> Markup:
    if not facts.samples:
        return element("p", "No samples were made.")
    shown = evenly(facts.samples, GRIDS)
    figures = []
    for step, path in shown:
        caption = element("figcaption", f"step {step}")
        try:
            image = empty("img", src=data_uri(path, BUDGET // len(shown)), alt=f"step {step}")
        except OSError:
            image = element("p", f"{path.name} cannot be read")
        figures.append(element("figure", caption, image))
    samples = facts.experiment.get("samples") or {}
    prompts = [element("li", str(prompt)) for prompt in samples.get("prompts") or ()]
    return joined(
        [
            element("p", f"{len(shown)} of {len(facts.samples)} grids, the newest last."),
            element("p", "A row for each prompt, in each of the styles:"),
            element("ol", *prompts),
            element("div", *figures, class_="grids"),
        ]
    )


def _checkpoints(facts: Facts) -> Markup:
    if not facts.checkpoints:
        return element("p", "There is none yet.")
    losses = [each.loss for each in facts.checkpoints if each.loss is not None]
    rows = []
    for each in reversed(facts.checkpoints):
        notes = ["newest"] if each is facts.checkpoints[-1] else []
        notes += ["best"] if losses and each.loss == min(losses) else []
        loss = "" if each.loss is None else number(each.loss)
        rows.append((f"{each.step}", loss, ", ".join(notes)))
    return table(("step", "mean loss of the steps before", ""), rows)


def _history(facts: Facts) -> Markup:
    hidden = {"time", "event", "step", "versions", *ENVIRONMENT}
    events = [
        (
            moment(row.get("time")),
            str(row.get("event", "")),
            str(row["step"]),
            "; ".join(f"{_plain(v)}" for k, v in row.items() if k not in hidden),
        )
        for row in facts.events
    ]
    parts = [table(("time", "event", "step", "why"), events)] if events else []
    skipped = "updates were not finite and were skipped; the weights stayed as they were."
    spikes = "losses stood out; the median of the hundred before is beside them."
    columns = ("source", "records")
    parts += [
        _batches(facts.skipped, ("loss", *columns), "No update was skipped.", skipped),
        _batches(facts.spikes, ("loss", "median", *columns), "No loss stood out.", spikes),
        _refused(facts.refused),
    ]
    return joined(parts)


def _batches(rows: Sequence[Row], keys: Sequence[str], none: str, some: str) -> Markup:
    """Returns how many steps there are, and of the last ones what is to say of their batches."""
    if not rows:
        return element("p", none)
    cells = [[str(row["step"]), *(_listed(row.get(key)) for key in keys)] for row in rows]
    return joined(
        [
            element("p", f"{len(rows)} {some}{_only(len(rows))}"),
            table(("step", *keys), cells[-LISTED:]),
        ]
    )


def _refused(rows: Sequence[Row]) -> Markup:
    if not rows:
        return element("p", "No refused record is on file (the list is written when a run ends).")
    counts = Counter(str(row.get("source")) for row in rows)
    lines = [
        element("li", f"{source}: {count} different records refused and replaced")
        for source, count in counts.most_common()
    ]
    cells = [[_plain(row.get(key)) for key in ("source", "id", "reason")] for row in rows]
    last = table(("source", "record", "reason"), cells[-LISTED:])
    return joined([element("ul", *lines), element("p", _only(len(rows))), last])


def _only(count: int) -> str:
    return f" Listed are the last {LISTED} of {count}." if count > LISTED else ""


def _config(facts: Facts) -> Markup:
    rows = [
        [
            element("b", each.name) if each.changed else each.name,
            element("b", _plain(each.value)) if each.changed else _plain(each.value),
        ]
        for each in facts.settings
    ]
    whole = element("pre", json.dumps(facts.experiment, indent=1, ensure_ascii=False))
    return joined(
        [
            element("p", "Bold: not the default, or without one."),
            table(("setting", "value"), rows, "config"),
            element("details", element("summary", "as JSON"), whole),
        ]
    )


def _environment(facts: Facts) -> Markup:
    rows = [(name, _plain(value)) for name, value in facts.bundle.items()]
    rows = [(f"bundle: {name}", value) for name, value in rows]
    starts = [row for row in facts.events if row.get("event") in ("started", "resumed")]
    seen: list[Any] = []
    for start in starts:
        here = {name: start[name] for name in ENVIRONMENT if name in start}
        here |= {f"version of {n}": v for n, v in (start.get("versions") or {}).items()}
        if here not in seen:
            seen.append(here)
            rows.append(("from step", str(start["step"])))
            rows += [(name, _plain(value)) for name, value in here.items()]
    if not starts:
        rows += [(f"version of {name}", _plain(v)) for name, v in facts.versions.items()]
    return table(("", ""), rows, "config")


def _listed(value: Any) -> str:
    return ", ".join(map(_plain, value)) if isinstance(value, list) else _plain(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
