"""Confidence intervals of a mean: the percentile bootstrap with a fixed seed.

Values are drawn again with replacement, as many as there are, and averaged; the interval lies
between percentiles of many such means.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0
# Memory: this many draws of all values at a time.
BATCH = 1_000


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


def mean_interval(
    values: Sequence[float] | Float[np.ndarray, " n"],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Returns the interval of the values' mean, or None of a single value, which tells nothing.

    Args:
        values: independent of each other, finite.
        confidence: how often such an interval should hold the true mean.
        resamples: how many means are drawn.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    from scipy import stats  # slow to import

    array = np.asarray(values, np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"wanted at least one value, all finite, got {list(values)[:3]}")
    if len(array) == 1:
        return None
    found = stats.bootstrap(
        (array,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        batch=BATCH,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))
