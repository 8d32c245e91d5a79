import numpy as np
import pytest
from PIL import ImageColor

from stylecrafter_jax.media.plots import COLOURS, LEFT, PLOT_WIDTH, Line, line_plot, nice_ticks

RIGHT = LEFT + PLOT_WIDTH


def plotted(*lines):
    words = [str(i) for i in range(len(lines[0].values))]
    return line_plot(lines, title="t", x_label="x", y_label="y", x_ticks=words)


def inked(image, colour):
    """Where, left of the legend, an image has about this colour."""
    wanted = np.array(ImageColor.getrgb(COLOURS[colour]))
    return np.abs(image[:, :RIGHT].astype(int) - wanted).max(-1) < 24


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 2.0, [0.0, 0.5, 1.0, 1.5, 2.0]),
        (0.93, 1.38, [0.9, 1.0, 1.1, 1.2, 1.3, 1.4]),
        (1.0, 1.0, [0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6]),
        (-30.0, 70.0, [-40.0, -20.0, 0.0, 20.0, 40.0, 60.0, 80.0]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, ticks):
    np.testing.assert_allclose(nice_ticks(low, high), ticks, atol=1e-12)


def test_a_constant_is_a_level_line_and_a_rise_goes_up():
    rows = np.nonzero(inked(plotted(Line("a", [1.0, 1.0, 1.0], 0)), 0))[0]
    assert rows.max() - rows.min() <= 8  # a marker
    rows, columns = np.nonzero(inked(plotted(Line("a", [0.0, 1.0], 0)), 0))
    left, right = (rows[columns == f()].mean() for f in (columns.min, columns.max))
    assert left - right > 300


def test_lines_have_their_colours_and_broken_ones_less_ink():
    image = plotted(Line("a", [0.0, 1.0], 0), Line("b", [0.5, 0.5], 1))
    assert inked(image, 0).any() and inked(image, 1).any() and not inked(image, 2).any()
    full, broken = (
        inked(plotted(Line("a", [0.0, 1.0], 0, dashed)), 0).sum() for dashed in (False, True)
    )
    assert 0.3 < broken / full < 0.7


def test_the_legend_makes_room_for_labels_and_cuts_endless_ones():
    short, long, endless = (plotted(Line("w" * n, [1.0], 0)).shape[1] for n in (1, 40, 400))
    assert short < long and endless <= long
    tall = plotted(*[Line(str(i), [1.0], i) for i in range(60)])
    assert tall.shape[0] > plotted(Line("a", [1.0], 0)).shape[0]


def test_lines_of_another_length_are_refused():
    with pytest.raises(ValueError, match="wanted lines of 2 values, got 2 lines"):
        plotted(Line("a", [1.0, 2.0], 0), Line("b", [1.0], 0))
