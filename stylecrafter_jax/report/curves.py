"""Curves over the steps of a run, as SVG that a page may colour."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from stylecrafter_jax.media.plots import nice_ticks
from stylecrafter_jax.report.markup import Markup, element, joined

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 26, 12, 34
POINTS = 500  # of a curve at most
SMOOTH = 20  # a curve is averaged over this share of its lines
WIDE = 30.0  # a largest value so many times the smallest is drawn on a logarithmic axis
HUES = (210, 20, 155, 320, 45, 265, 0)
Points = Sequence[tuple[int, float]]


class Curve(NamedTuple):
    """One curve: its name and its points, steps rising; values are finite."""

    name: str
    points: Points


class Axes(NamedTuple):
    """Where steps and values lie in a drawing."""

    steps: tuple[int, int]
    values: tuple[float, float]
    log: bool

    def x(self, step: float | int) -> float:
        """Returns the place of a step."""
        low, high = self.steps
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - low) / (high - low)

    def y(self, value: float) -> float:
        """Returns the place of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (*self.values, value))
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)


def chart(
    curves: Sequence[Curve], marks: Sequence[int] = (), *, smooth: bool = True, log: bool = True
) -> Markup:
    """Returns a drawing of curves, and a legend with the last value of each.

    Args:
        curves: each has a point.
        marks: steps at which a vertical line stands.
        smooth: draw a running mean over each curve, which becomes pale; see `smoothed`.
        log: draw values that differ much on a logarithmic axis; see `WIDE`.
    """
    axes, ticks = _axes(curves, log)
    parts = [_grid(axes, ticks)]
    parts += [
        element(
            "line",
            x1=_round(axes.x(step)),
            x2=_round(axes.x(step)),
            y1=TOP,
            y2=HEIGHT - BOTTOM,
            class_="mark",
        )
        for step in marks
        if axes.steps[0] <= step <= axes.steps[1]
    ]
    for i, curve in enumerate(curves):
        lines = [("line", curve.points)]
        if smooth and len(curve.points) > SMOOTH:
            lines = [("raw", curve.points), ("line", smoothed(curve.points))]
        parts += [_path(axes, points, class_, i, len(curves)) for class_, points in lines]
    names = ", ".join(curve.name for curve in curves)
    drawing = element(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"curves: {names}"
    )
    return joined([drawing, _legend(curves)])


def smoothed(points: Points) -> list[tuple[int, float]]:
    """Returns the mean of each point and those before it, in a window of a share of all points."""
    window = max(2, len(points) // SMOOTH)
    means = []
    for i, (step, _) in enumerate(points):
        values = [value for _, value in points[max(0, i + 1 - window) : i + 1]]
        means.append((step, math.fsum(values) / len(values)))
    return means


def thinned(points: Points) -> list[tuple[int, float]]:
    """Returns at most `POINTS` points, evenly chosen, the first and the last among them."""
    if len(points) <= POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (POINTS - 1))] for i in range(POINTS)]


def number(value: float) -> str:
    """Returns a value with four digits, as a reader writes it."""
    return f"{value:.4g}"


def _axes(curves: Sequence[Curve], log: bool) -> tuple[Axes, list[float]]:
    steps = [step for curve in curves for step, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    low, high = min(values), max(values)
    log = log and low > 0 and high > WIDE * low
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [10.0**power for power in decades]
        ticks = ticks[:: -(-len(ticks) // 7)] if len(ticks) > 7 else ticks
        span = (min(low, ticks[0]), max(high, ticks[-1]))
    else:
        ticks = nice_ticks(low, high, 5)
        span = (ticks[0], ticks[-1])
    return Axes((min(steps), max(max(steps), min(steps) + 1)), span, log), ticks


def _grid(axes: Axes, ticks: Sequence[float]) -> Markup:
    parts = []
    for value in ticks:
        y = _round(axes.y(value))
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(element("text", number(value), x=LEFT - 8, y=y + 4, text_anchor="end"))
    low, high = axes.steps
    for step in nice_ticks(float(low), float(high), 6):
        if low <= step <= high and step == round(step):
            place = {"x": _round(axes.x(step)), "y": HEIGHT - BOTTOM + 18}
            parts.append(element("text", f"{round(step)}", text_anchor="middle", **place))
    return joined(parts)


def _path(axes: Axes, points: Points, class_: str, i: int, count: int) -> Markup:
    places = [f"{_round(axes.x(s))},{_round(axes.y(v))}" for s, v in thinned(points)]
    style = f"--hue:{_hue(i, count)}"
    if len(places) == 1:
        x, y = places[0].split(",")
        return element("circle", cx=x, cy=y, r=3, class_="dot", style=style)
    return element("polyline", points=" ".join(places), class_=class_, style=style)


def _legend(curves: Sequence[Curve]) -> Markup:
    entries = []
    for i, curve in enumerate(curves):
        key = element("i", style=f"--hue:{_hue(i, len(curves))}")
        last = element("b", number(curve.points[-1][1]))
        entries.append(element("span", key, curve.name, " ", last))
    return element("p", *entries, class_="legend")


def _hue(i: int, count: int) -> int:
    return HUES[i] if count <= len(HUES) else round(360 * i / count)


def _round(value: float) -> float:
    return round(value, 1)
