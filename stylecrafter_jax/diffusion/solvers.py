"""Solvers of the sampling equation, each one a table of coefficients for the same linear step.

Between two noise levels every solver here only mixes arrays that it already has. With the state x,
the network's output `out`, and `c` the row of coefficients of this level,

    x0    = c.x0_x x + c.x0_out out                                    (any kind of prediction)
    fixed = c.keep x + c.fix_last last + c.fix_x0 x0
                     + c.fix_prev prev + c.fix_prev2 prev2             (corrector)
    x'    = c.x fixed + c.x0 x0 + c.prev prev + c.noise N(0, 1)        (predictor)

where `prev` and `prev2` are x0 of the last two steps and `last` is the last `fixed`. Only UniPC
corrects. The state holds signal and noise as equation (1) of `schedules` has them, so it is the
network's input as it stands; samplers published in the variance-exploding frame (where the noise is
sigma = noise / signal) are converted.

Below, a and s are the factors of x0 and of the noise at a level, and lambda = log(a / s).
"""

from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stylecrafter_jax.config import Prediction
from stylecrafter_jax.diffusion.schedules import prediction_weights

# Under this many steps DPM-Solver++ ends with a first-order step, which is more stable.
FEW_STEPS = 15
# float64 in numpy on the host, float32 in JAX inside a program.
Table: TypeAlias = Any


class Levels(NamedTuple):
    """The [n + 1] noise levels that a sampler visits, in visiting order, and the one it ends at."""

    alpha_bar: Table
    signal_scale: Table

    @property
    def signal(self) -> Table:
        """a, the factor of x0."""
        return self.alpha_bar**0.5 * self.signal_scale

    @property
    def noise(self) -> Table:
        """s, the standard deviation of the noise."""
        return (1.0 - self.alpha_bar) ** 0.5

    @property
    def sigma(self) -> Table:
        """Noise over signal of the unscaled process; infinite where there is no signal."""
        with np.errstate(divide="ignore"):
            return np.sqrt((1.0 - self.alpha_bar) / self.alpha_bar)


class Coefficients(NamedTuple):
    """The table of a solver: columns [n] on the host, scalars inside a step."""

    x0_x: Table
    x0_out: Table
    keep: Table
    fix_last: Table
    fix_x0: Table
    fix_prev: Table
    fix_prev2: Table
    x: Table
    x0: Table
    prev: Table
    noise: Table


class State(NamedTuple):
    """What a step hands to the next one; all arrays have the shape of `x`."""

    x: Float[Array, "b ..."]
    last: Float[Array, "b ..."]
    prev: Float[Array, "b ..."]
    prev2: Float[Array, "b ..."]


def start(x: Float[Array, "b ..."]) -> State:
    """Returns the state before the first step; no table reads its history there."""
    # One array each: a program that is donated the state may not get one buffer twice.
    return State(x, *(jnp.zeros_like(x) for _ in range(3)))


def step(
    state: State,
    out: Float[Array, "b ..."],
    c: Coefficients,
    noise: Float[Array, "b ..."] | None = None,
) -> tuple[State, Float[Array, "b ..."]]:
    """Returns the state at the next level and the estimate of x0 at this one."""
    x, last, prev, prev2 = state
    x0 = c.x0_x * x + c.x0_out * out
    fixed = c.keep * x + c.fix_last * last + c.fix_x0 * x0 + c.fix_prev * prev + c.fix_prev2 * prev2
    x = c.x * fixed + c.x0 * x0 + c.prev * prev
    if noise is not None:
        x = x + c.noise * noise
    return State(x=x, last=fixed, prev=x0, prev2=prev), x0


def one_step(levels: Levels, prediction: Prediction, eta: float = 0.0) -> Coefficients:
    """Returns the table of DDIM; also of Euler, and of Euler ancestral with `eta` 1.

        x' = a' x0 + sqrt(s'^2 - n^2) eps + n N(0, 1),    n = eta s'/s sqrt(1 - ab / ab')

    with eps = (x - a x0) / s. An Euler step of dx/dsigma = eps in the variance-exploding frame is
    this one with eta 0, and the ancestral step is this one with eta 1: the names differ only in the
    levels they visit.

    Source: Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16; Karras et al. 2022 (arXiv
    2206.00364), alg. 1; k-diffusion, sampling.py, get_ancestral_step.
    """
    a, s, ab = levels.signal[:-1], levels.noise[:-1], levels.alpha_bar[:-1]
    a_next, s_next, ab_next = levels.signal[1:], levels.noise[1:], levels.alpha_bar[1:]
    added = eta * s_next / s * np.sqrt(np.maximum(1.0 - ab / ab_next, 0.0))
    x = np.sqrt(np.maximum(s_next**2 - added**2, 0.0)) / s
    return _table(levels, prediction, x=x, x0=a_next - a * x, noise=added)


def dpm_solver(levels: Levels, prediction: Prediction) -> Coefficients:
    """Returns the table of DPM-Solver++ 2M, midpoint kind, which is deterministic.

    Source: Lu et al. 2022 (arXiv 2211.01095), alg. 2; diffusers, DPMSolverMultistepScheduler.
    """
    short = len(levels.alpha_bar) - 1 < FEW_STEPS
    x, x0, prev = _predictor(levels, first_order_end=short)
    return _table(levels, prediction, x=x, x0=x0, prev=prev)


def unipc(levels: Levels, prediction: Prediction) -> Coefficients:
    """Returns the table of UniPC, order 2, B(h) = exp(h) - 1, which is deterministic.

    The corrector of a step redoes the step before it, now that x0 is known at both of its ends;
    the first step has none. Its order is that of the predictor it corrects.

    Source: Zhao et al. 2023 (arXiv 2302.04867), alg. 1 and app. E.3; diffusers,
    UniPCMultistepScheduler (`bh2`, `predict_x0`, `lower_order_final`).
    """
    x, x0, prev = _predictor(levels, first_order_end=True)
    ratio, span, h = _exponentials(levels)
    fixes = {name: np.zeros_like(x) for name in ("fix_last", "fix_x0", "fix_prev", "fix_prev2")}
    keep = np.ones_like(x)
    for i in range(1, len(x)):
        behind, here = 0.0, 0.5
        if i > 1:
            behind, here = _corrector_weights(h[i - 1], h[i - 2])
        keep[i] = 0.0
        fixes["fix_last"][i] = ratio[i - 1]
        fixes["fix_x0"][i] = span[i - 1] * here
        fixes["fix_prev"][i] = span[i - 1] * (1.0 - here - behind)
        fixes["fix_prev2"][i] = span[i - 1] * behind
    return _table(levels, prediction, keep=keep, x=x, x0=x0, prev=prev, **fixes)


def _corrector_weights(h: float, h_before: float) -> tuple[float, float]:
    """Returns the weights of x0 one step behind and at the end of a step of size `h`.

    They solve [[1, 1], [r, 1]] (rho, here) = (2 phi_2, 6 phi_3) / B with r = -h_before / h, where
    the equations are written for -h as the estimate is of x0.
    """
    grown = np.expm1(-h)
    first = grown / -h - 1.0
    second = first / -h - 0.5
    r = -h_before / h
    rho = (first - 2.0 * second) / grown / (1.0 - r)
    return rho / r, first / grown - rho


def _predictor(levels: Levels, *, first_order_end: bool) -> tuple[np.ndarray, ...]:
    """Returns the factors of x, x0 and the previous x0 of the second-order multistep predictor.

        x' = (s'/s) x + a' (1 - exp(-h)) (x0 + (x0 - prev) h / (2 h_before))

    The first step is of first order. So is the last if it ends without noise, where h is infinite.
    """
    ratio, span, h = _exponentials(levels)
    half = np.zeros_like(h)
    with np.errstate(divide="ignore", invalid="ignore"):
        half[1:] = 0.5 * h[1:] / h[:-1]
    if first_order_end or np.isinf(h[-1]):
        half[-1] = 0.0
    return ratio, span * (1.0 + half), -span * half


def _exponentials(levels: Levels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns s'/s, a' (1 - exp(-h)) and h = lambda' - lambda of every step."""
    a, s = levels.signal, levels.noise
    with np.errstate(divide="ignore"):
        log_snr = np.log(a) - np.log(s)
    ratio = s[1:] / s[:-1]
    return ratio, a[1:] - a[:-1] * ratio, np.diff(log_snr)


def _table(levels: Levels, prediction: Prediction, **entries: np.ndarray) -> Coefficients:
    """Returns a table with the prediction's weights; absent entries are 0, `keep` is 1."""
    visited = levels.alpha_bar[:-1]
    weights = prediction_weights(prediction, visited, levels.signal_scale[:-1])
    table = {name: np.zeros_like(visited) for name in Coefficients._fields}
    table |= {"keep": np.ones_like(visited), "x0_x": weights.x0_x, "x0_out": weights.x0_out}
    return Coefficients(**(table | entries))
