import re

import numpy as np
import pytest

from stylecrafter_jax.report.curves import Curve, chart, smoothed, thinned


def places(text, class_):
    found = re.search(rf'<polyline points="([^"]+)" class="{class_}"', text)
    assert found is not None
    return [tuple(map(float, pair.split(","))) for pair in found[1].split()]


def test_points_lie_where_axes_say():
    """Steps 0 to 10 span x 62 to 614; values 0 to 1 span y 226 to 12."""
    text = chart([Curve("a", [(0, 0.0), (5, 0.5), (10, 1.0)])])
    assert places(text, "line") == [(62.0, 226.0), (338.0, 119.0), (614.0, 12.0)]


def test_values_of_many_sizes_are_drawn_by_their_logarithm():
    curve = Curve("a", [(0, 0.01), (1, 0.1), (2, 1.0)])
    ys = [y for _, y in places(chart([curve]), "line")]
    assert ys == [226.0, 119.0, 12.0]
    linear = [y for _, y in places(chart([curve], log=False), "line")]
    assert linear == pytest.approx([223.9, 204.6, 12.0], abs=0.1)


@pytest.mark.parametrize("points", [[(3, 1.0)], [(3, 1.0), (4, 1.0)], [(1, -2.0), (9, 0.0)]])
def test_few_and_equal_points_can_be_drawn(points):
    text = chart([Curve("a", points)], marks=[3, 100])
    assert "nan" not in text and "inf" not in text
    assert text.count('class="mark"') == (1 if points[0][0] <= 3 else 0)
    assert f"<b>{points[-1][1]:.4g}</b>" in text


def test_a_running_mean_is_drawn_over_long_curves():
    points = [(i, float(i % 2)) for i in range(100)]
    text = chart([Curve("a", points)])
    assert len(places(text, "raw")) == len(places(text, "line")) == 100
    values = [value for _, value in smoothed(points)]  # a window of five
    np.testing.assert_allclose(values[:3], [0.0, 0.5, 1 / 3])
    assert set(np.round(values[5:], 6)) == {0.4, 0.6}


def test_long_curves_keep_their_ends():
    points = [(i, 0.0) for i in range(40_000)]
    some = thinned(points)
    assert (len(some), some[0], some[-1]) == (500, points[0], points[-1])


def test_names_are_escaped():
    text = chart([Curve('"<b>', [(0, 1.0)])])
    assert "<b>1</b>" in text and "&quot;&lt;b&gt;" in text and text.count("<b>") == 1
