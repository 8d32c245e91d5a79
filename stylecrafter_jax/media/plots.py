"""Line plots, drawn with Pillow alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours, which colour-blind readers can tell apart, but for their yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SHARP = 2  # the plot is drawn larger by this factor, and shrunk
HEIGHT, PLOT_WIDTH = 480, 640
LEFT, TOP, BOTTOM, GAP = 72, 44, 64, 16
SAMPLE = 36  # length of a line in the legend
FONT_SIZE, LONGEST_LABEL = 14, 40
MARKER = 3.5
INK, GRID = "#333333", "#E0E0E0"
DASH = 7
Point = tuple[float | int, float | int]  # x, y in pixels


class Line(NamedTuple):
    """One line of a plot; its i-th value stands at the i-th place of the axis.

    Attributes:
        label: in the legend.
        values: at least one, all finite.
        colour: which of `COLOURS`, counted round.
        dashed: a broken line with hollow markers.
    """

    label: str
    values: Sequence[float]
    colour: int
    dashed: bool = False


def line_plot(
    lines: Sequence[Line], *, title: str, x_label: str, y_label: str, x_ticks: Sequence[str]
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a plot with axes, their labels, and a legend at the right.

    Args:
        lines: at least one; all as long as `x_ticks`.
        title: above the plot.
        x_label: below it.
        y_label: left above it.
        x_ticks: a word for each place of the axis; where they are too many, some are left out.

    Raises:
        ValueError: lines differ in length from `x_ticks`, or there is none.
    """
    if not lines or {len(line.values) for line in lines} != {len(x_ticks)} or not x_ticks:
        raise ValueError(f"wanted lines of {len(x_ticks)} values, got {len(lines)} lines")
    font = ImageFont.load_default(FONT_SIZE * SHARP)
    labels = [_shortened(line.label) for line in lines]
    legend = max(font.getlength(label) for label in labels) / SHARP + SAMPLE + GAP
    height = max(HEIGHT, TOP + 22 * (len(lines) + 1))
    width = math.ceil(LEFT + PLOT_WIDTH + 2 * GAP + legend + GAP)
    image = Image.new("RGB", (width * SHARP, height * SHARP), "white")
    canvas = _Canvas(ImageDraw.Draw(image), font)
    values = [value for line in lines for value in line.values]
    ticks = nice_ticks(min(values), max(values))
    top, bottom = TOP, height - BOTTOM
    right = LEFT + PLOT_WIDTH

    def column(i: int) -> float:
        return LEFT + PLOT_WIDTH * (i + 0.5) / len(x_ticks)

    def height_of(value: float) -> float:
        return bottom - (bottom - top) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    for value in ticks:
        y = height_of(value)
        canvas.line([(LEFT, y), (right, y)], GRID)
        canvas.text((LEFT - 8, y), f"{value:.{_decimals(ticks)}f}", "rm")
    every = math.ceil(len(x_ticks) * 2.0 * FONT_SIZE / PLOT_WIDTH)
    for i, word in enumerate(x_ticks):
        if i % every == 0:
            canvas.line([(column(i), bottom), (column(i), bottom + 4)], INK)
            canvas.text((column(i), bottom + 8), word, "mt")
    canvas.line([(LEFT, top), (LEFT, bottom), (right, bottom)], INK)
    canvas.text(((LEFT + right) / 2, 12), title, "mt")
    canvas.text(((LEFT + right) / 2, height - 12), x_label, "mb")
    canvas.text((8, 12), y_label, "lt")
    for row, (line, label) in enumerate(zip(lines, labels, strict=True)):
        canvas.curve([(column(i), height_of(v)) for i, v in enumerate(line.values)], line)
        x, y = right + 2 * GAP, TOP + 22 * row
        canvas.curve([(x, y), (x + SAMPLE, y)], line)
        canvas.text((x + SAMPLE + GAP / 2, y), label, "lm")
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Returns about `count` round numbers at equal steps of 1, 2 or 5 that enclose [low, high]."""
    if high - low < 1e-6 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _decimals(ticks: Sequence[float]) -> int:
    return max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"...{label[3 - LONGEST_LABEL :]}"


class _Canvas(NamedTuple):
    """Draws in pixels of the finished plot."""

    draw: ImageDraw.ImageDraw
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont

    def line(self, points: Sequence[Point], colour: str, width: float | int = 1) -> None:
        scaled = [(x * SHARP, y * SHARP) for x, y in points]
        self.draw.line(scaled, fill=colour, width=round(width * SHARP), joint="curve")

    def text(self, place: Point, text: str, anchor: str) -> None:
        x, y = place
        self.draw.text((x * SHARP, y * SHARP), text, fill=INK, font=self.font, anchor=anchor)

    def curve(self, points: Sequence[Point], line: Line) -> None:
        """Draws points joined by a line, in the line's style."""
        colour = COLOURS[line.colour % len(COLOURS)]
        for start, end in zip(points, points[1:], strict=False):
            for part in _dashes(start, end) if line.dashed else [(start, end)]:
                self.line(part, colour, 2)
        for x, y in points:
            box = [(v + d) * SHARP for d in (-MARKER, MARKER) for v in (x, y)]
            fill = "white" if line.dashed else colour
            self.draw.ellipse(box, fill=fill, outline=colour, width=2 * SHARP)


def _dashes(start: Point, end: Point):
    """Yields every other piece of a line."""
    (x0, y0), (x1, y1) = start, end
    count = max(1, round(math.dist(start, end) / DASH)) | 1
    for i in range(0, count, 2):
        a, b = i / count, (i + 1) / count
        yield (
            (x0 + (x1 - x0) * a, y0 + (y1 - y0) * a),
            (x0 + (x1 - x0) * b, y0 + (y1 - y0) * b),
        )
