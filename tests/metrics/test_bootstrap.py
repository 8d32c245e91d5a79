import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax.metrics.bootstrap import mean_interval


def test_of_many_values_it_is_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    low, high = mean_interval(values)
    half = 1.959964 * values.std() / np.sqrt(len(values))
    assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.05 * half)
    low, high = mean_interval(values, confidence=0.5)
    assert_allclose(high - low, 2 * 0.67449 * half / 1.959964, rtol=0.05)


def test_two_values_are_drawn_as_the_binomial_says():
    # Means are 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4.
    assert mean_interval([0.0, 1.0]) == (0.0, 1.0)
    assert mean_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)


def test_it_holds_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        low, high = mean_interval(rng.normal(0.0, 1.0, 60), resamples=400)
        hits += low <= 0.0 <= high
    # 95 %, a little less for 60 values; the standard deviation of the count is 1.3 %.
    assert 0.90 <= hits / 300 <= 0.98


def test_it_moves_and_stretches_with_the_values_and_repeats():
    values = np.random.default_rng(2).exponential(size=30)
    low, high = mean_interval(values)
    assert low < values.mean() < high
    assert (low, high) == mean_interval(values)
    assert_allclose(mean_interval(10.0 * values + 4.0), (10.0 * low + 4.0, 10.0 * high + 4.0))


def test_equal_values_have_no_width_and_one_value_no_interval():
    assert mean_interval([2.5] * 5) == (2.5, 2.5)
    assert mean_interval([2.5]) is None


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_values_it_cannot_use_are_refused(values):
    with pytest.raises(ValueError, match="all finite"):
        mean_interval(values)
