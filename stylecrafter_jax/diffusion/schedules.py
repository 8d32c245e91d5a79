"""The forward process: how much signal and how much noise a latent holds at every timestep.

    x_t = sqrt(alpha_bar_t) * scale_t * x0 + sqrt(1 - alpha_bar_t) * noise            (1)

`scale_t` is 1, except in models with VideoCrafter2's rescaled signal. A network predicts one of

    eps = noise
    v   = sqrt(alpha_bar_t) * noise - sqrt(1 - alpha_bar_t) * scale_t * x0            (2)
    x0

Tables are float64 on the host; JAX gets them as float32.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stylecrafter_jax.config import Prediction, ScheduleConfig


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NoiseSchedule:
    """The tables of one forward process, indexed by timestep; 0 is almost clean.

    Attributes:
        betas: variance added by each step.
        alpha_bar: running product of `1 - betas`.
        signal_scale: `scale_t` of equation (1).
        prediction: what the network's output means.
        mid_step: steps over which the signal's scale falls; 0 if the model has no such scale.
    """

    betas: Float[np.ndarray, " t"]
    alpha_bar: Float[np.ndarray, " t"]
    signal_scale: Float[np.ndarray, " t"]
    prediction: Prediction
    mid_step: int = 0

    @property
    def timesteps(self) -> int:
        """Number of timesteps the model was trained with."""
        return len(self.alpha_bar)


class PredictionWeights(NamedTuple):
    """A prediction is linear: x0 = x0_x * x + x0_out * out, eps = eps_x * x + eps_out * out."""

    x0_x: np.ndarray
    x0_out: np.ndarray
    eps_x: np.ndarray
    eps_out: np.ndarray


def make_schedule(config: ScheduleConfig) -> NoiseSchedule:
    """Returns the schedule that is linear in sqrt(beta).

    Raises:
        ValueError: there is no timestep, a beta leaves (0, 1), or the signal's scale has not
            ended by the last timestep.

    Source: StyleCrafter, lvdm/models/utils_diffusion.py, make_beta_schedule ("linear"); Lin et al.
    2023 (arXiv 2305.08891), alg. 1; VideoCrafter, lvdm/models/ddpm3d.py, register_schedule.
    """
    total = config.timesteps
    if total < 1:
        raise ValueError(f"schedule.timesteps must be at least 1, got {total}")
    if not (0 < config.linear_start < 1 and 0 < config.linear_end < 1):
        raise ValueError(
            "schedule.linear_start and linear_end must lie between 0 and 1, "
            f"got {config.linear_start} and {config.linear_end}"
        )
    betas = np.linspace(config.linear_start**0.5, config.linear_end**0.5, total) ** 2
    if config.zero_terminal_snr:
        betas = _zero_terminal_snr(betas)
    scale, mid_step = np.ones(total), 0
    if config.use_scale:
        mid_step = config.mid_step
        if not 1 <= mid_step <= total:
            raise ValueError(f"schedule.mid_step must be between 1 and {total}, got {mid_step}")
        fall = np.linspace(config.scale_a, config.scale_b, mid_step)
        scale = np.concatenate([fall, np.full(total - mid_step, config.scale_b)])
    return NoiseSchedule(
        betas=betas,
        alpha_bar=np.cumprod(1.0 - betas),
        signal_scale=scale,
        prediction=config.prediction,
        mid_step=mid_step,
    )


def _zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Shifts sqrt(alpha_bar) to end at 0, and stretches it to begin where it did."""
    root = np.sqrt(np.cumprod(1.0 - betas))
    if len(root) < 2:
        raise ValueError("a zero terminal signal needs at least 2 timesteps, got 1")
    alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1.0 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])


def buffers(schedule: NoiseSchedule) -> dict[str, np.ndarray]:
    """Returns the float32 tables that the original stores in its checkpoints, by their names.

    With a zero terminal signal the last entries of the reciprocal tables are infinite. `scale_arr`
    is there only for models that have it, and is longer than the other tables by `mid_step`: the
    original appends `timesteps` constant entries to the falling ones, and never reads the excess.

    Source: VideoCrafter, lvdm/models/ddpm3d.py, DDPM.register_schedule.
    """
    betas, now = schedule.betas, schedule.alpha_bar
    before = np.concatenate([[1.0], now[:-1]])
    variance = betas * (1.0 - before) / (1.0 - now)
    with np.errstate(divide="ignore"):
        tables = {
            "betas": betas,
            "alphas_cumprod": now,
            "alphas_cumprod_prev": before,
            "sqrt_alphas_cumprod": np.sqrt(now),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - now),
            "log_one_minus_alphas_cumprod": np.log(1.0 - now),
            "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / now),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / now - 1.0),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
            "posterior_mean_coef1": betas * np.sqrt(before) / (1.0 - now),
            "posterior_mean_coef2": (1.0 - before) * np.sqrt(1.0 - betas) / (1.0 - now),
        }
    if schedule.mid_step:
        scale = schedule.signal_scale
        tables["scale_arr"] = np.concatenate([scale, np.full(schedule.mid_step, scale[-1])])
    return {name: table.astype(np.float32) for name, table in tables.items()}


def prediction_weights(
    prediction: Prediction,
    alpha_bar: Float[np.ndarray, " n"],
    signal_scale: Float[np.ndarray, " n"],
) -> PredictionWeights:
    """Returns equations (1) and (2) solved for (x0, eps) at the given noise levels.

    Raises:
        ValueError: a level holds no signal at all and the network predicts eps, which says
            nothing about x0 there.
    """
    if prediction == "eps" and np.any(alpha_bar == 0.0):
        raise ValueError(
            "eps prediction cannot start from pure noise (zero terminal SNR): use a model with v "
            "or x0 prediction, or timesteps that leave out the last one"
        )
    root, noise = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
    zero, one = np.zeros_like(root), np.ones_like(root)
    if prediction == "eps":
        signal = root * signal_scale
        return PredictionWeights(1.0 / signal, -noise / signal, zero, one)
    if prediction == "v":
        return PredictionWeights(root / signal_scale, -noise / signal_scale, noise, root)
    return PredictionWeights(zero, one, 1.0 / noise, -root * signal_scale / noise)


def add_noise(
    schedule: NoiseSchedule,
    x0: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    t: Int[Array, " b"],
) -> Float[Array, "b ..."]:
    """Returns x_t, equation (1).

    Source: Ho et al. 2020, eq. 4; StyleCrafter, lvdm/models/ddpm3d.py, DDPM.q_sample.
    """
    signal, sigma = at_timesteps(
        [np.sqrt(schedule.alpha_bar) * schedule.signal_scale, np.sqrt(1.0 - schedule.alpha_bar)],
        t,
        x0.ndim,
    )
    return signal * x0 + sigma * noise


def to_x0_eps(
    schedule: NoiseSchedule,
    x: Float[Array, "b ..."],
    out: Float[Array, "b ..."],
    t: Int[Array, " b"],
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
    """Returns (x0, eps) that the network's output `out` at (x, t) stands for.

    Raises:
        ValueError: eps prediction on a schedule that ends without signal.
    """
    weights = prediction_weights(schedule.prediction, schedule.alpha_bar, schedule.signal_scale)
    x0_x, x0_out, eps_x, eps_out = at_timesteps(weights, t, x.ndim)
    return x0_x * x + x0_out * out, eps_x * x + eps_out * out


def at_timesteps(
    tables: Sequence[np.ndarray], t: Int[Array, " b"], ndim: int
) -> list[Float[Array, "b ..."]]:
    """Returns each table's values at `t` as float32 with trailing axes of 1, `ndim` in all."""
    axes = tuple(range(1, ndim))
    return [jnp.expand_dims(jnp.asarray(table, jnp.float32)[t], axes) for table in tables]
