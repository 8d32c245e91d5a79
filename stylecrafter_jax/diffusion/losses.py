"""What a denoiser is trained towards, and the loss."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stylecrafter_jax.diffusion.schedules import NoiseSchedule, at_timesteps


def training_target(
    schedule: NoiseSchedule,
    x0: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    t: Int[Array, " b"],
) -> Float[Array, "b ..."]:
    """Returns what the network should output at (x_t, t): eps, v or x0, as the schedule says.

    Source: Ho et al. 2020, eq. 14 (eps); Salimans & Ho 2022 (arXiv 2202.00512), app. D (v).
    """
    if schedule.prediction == "eps":
        return noise
    if schedule.prediction == "x0":
        return x0
    alpha_bar, scale = schedule.alpha_bar, schedule.signal_scale
    root, sigma = at_timesteps([np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar) * scale], t, x0.ndim)
    return root * noise - sigma * x0


def denoising_loss(pred: Float[Array, "b ..."], target: Float[Array, "b ..."]) -> Float[Array, ""]:
    """Returns the mean over all elements of the squared error, in float32."""
    return jnp.mean(jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32)))
