"""Where along a schedule a sampler evaluates the network."""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from stylecrafter_jax.diffusion.schedules import NoiseSchedule
from stylecrafter_jax.diffusion.solvers import Levels

Spacing = Literal["uniform", "leading", "trailing", "linspace"]


def spaced(
    spacing: Spacing, total: int, steps: int, *, offset: int, drop_lowest: bool
) -> Float[np.ndarray, " n"]:
    """Returns timesteps below `total`, falling.

    - uniform: every (total // steps)-th from `offset` up to the end of the schedule, which are more
      than `steps` if that does not divide `total`; the original's DDIM.
    - leading: the lowest `steps` of these.
    - trailing: counted down from the last timestep, rounded.
    - linspace: from the last to the first, fractional.

    With `drop_lowest` one more is made and the lowest left out, except with trailing spacing, which
    has the distance of a step below its lowest anyway.

    Raises:
        ValueError: an unknown spacing, or one that cannot hold so many steps.

    Source: StyleCrafter, lvdm/models/utils_diffusion.py, make_ddim_timesteps (uniform); Lin et al.
    2023 (arXiv 2305.08891), table 2 (the others).
    """
    points = steps + drop_lowest
    stride = total // points
    if spacing == "uniform":
        # The original fails where a timestep lands on `total` (3 steps of 1000); it is left out.
        t = np.arange(0, total, max(stride, 1)) + offset
        t = t[t < total]
    elif spacing == "leading":
        t = np.arange(points) * stride + offset
    elif spacing == "trailing":
        t = np.round(total - np.arange(steps) * (total / steps))[::-1] - 1
        drop_lowest = False
    elif spacing == "linspace":
        # A single step starts at the last timestep, where sampling does.
        t = np.linspace(total - 1, 0, points)[::-1]
    else:
        known = ", ".join(get_args(Spacing))
        raise ValueError(f"unknown timestep spacing {spacing!r}, wanted one of {known}")
    t = t[::-1].astype(np.float64)[: -1 if drop_lowest else None]
    if len(t) == 0 or t[0] > total - 1 or t[-1] < 0 or np.any(np.diff(t) >= 0):
        raise ValueError(
            f"{spacing} spacing with offset {offset} cannot place {steps} steps among {total} "
            "timesteps; take fewer steps, or trailing spacing"
        )
    return t


def levels_at(schedule: NoiseSchedule, t: Float[np.ndarray, " n"]) -> Levels:
    """Returns the noise levels at timesteps `t`; sigma is linear between whole ones.

    Raises:
        ValueError: more than one of them holds no signal.
    """
    levels = _from_sigma(schedule, _sigma_at(schedule, t), t)
    if np.count_nonzero(levels.alpha_bar == 0.0) > 1:
        raise ValueError(f"{len(t)} steps of this spacing visit pure noise more than once")
    return levels


def karras_levels(
    schedule: NoiseSchedule, t: Float[np.ndarray, " n"], *, whole_range: bool, rho: float = 7.0
) -> tuple[Float[np.ndarray, " n"], Levels]:
    """Returns timesteps and levels with sigma^(1/rho) evenly spaced, as many as `t` has.

    Sigma runs over the range of `t`, or with `whole_range` over that of the whole schedule, where
    the timesteps told to the network are rounded too.

    Raises:
        ValueError: the range begins at pure noise, where sigma is infinite.

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5; diffusers, `use_karras_sigmas`.
    """
    table = _sigma(schedule)
    most, least = (table[-1], table[0]) if whole_range else _sigma_at(schedule, t[[0, -1]])
    if np.isinf(most):
        raise ValueError("Karras spacing needs a schedule that does not end in pure noise")
    ramp = np.linspace(0.0, 1.0, len(t))
    sigma = (most ** (1 / rho) + ramp * (least ** (1 / rho) - most ** (1 / rho))) ** rho
    t = np.interp(np.log(sigma), np.log(table), np.arange(schedule.timesteps, dtype=np.float64))
    return np.round(t) if whole_range else t, _from_sigma(schedule, sigma, t)


def _sigma_at(schedule: NoiseSchedule, t: np.ndarray) -> np.ndarray:
    """Returns sigma at timesteps `t`, linear between whole ones."""
    sigma = _sigma(schedule)
    low = np.floor(t).astype(int)
    high = np.minimum(low + 1, schedule.timesteps - 1)
    share = t - low
    # Not np.interp: a schedule may end at sigma = infinity, and 0 * infinity is not a number.
    with np.errstate(invalid="ignore"):
        return np.where(share > 0, sigma[low] + share * (sigma[high] - sigma[low]), sigma[low])


def _sigma(schedule: NoiseSchedule) -> np.ndarray:
    return Levels(schedule.alpha_bar, schedule.signal_scale).sigma


def _from_sigma(schedule: NoiseSchedule, sigma: np.ndarray, t: np.ndarray) -> Levels:
    scale = np.interp(t, np.arange(schedule.timesteps), schedule.signal_scale)
    return Levels(alpha_bar=1.0 / (1.0 + sigma**2), signal_scale=scale)
