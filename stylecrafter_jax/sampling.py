"""Sampling as pure functions of arrays: what is done once before the steps, and the steps."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.denoiser import Blocks, Prepared, Steps, make_denoiser, steps_of
from stylecrafter_jax.diffusion import solvers
from stylecrafter_jax.diffusion.samplers import Plan, advance_with_memory, make_plan
from stylecrafter_jax.diffusion.schedules import NoiseSchedule
from stylecrafter_jax.diffusion.solvers import State
from stylecrafter_jax.kernels.sharded import over_rows
from stylecrafter_jax.models.networks import Networks
from stylecrafter_jax.options import Resolved
from stylecrafter_jax.sharding import stay

Carry = tuple[State, Any]
CARRY = 3  # the argument of `advance` that may be donated


class Sampling(NamedTuple):
    """A sampler of one model and one set of options.

    Attributes:
        plan: of the sampler.
        steps: what its steps are told.
        prepare: (unet parameters, condition, steps, fps) -> what does not depend on the latents.
        begin: (unet parameters, prepared, x) -> the state before the first step.
        advance: (unet parameters, prepared, keys, state, first, stop) -> the state after steps.
    """

    plan: Plan
    steps: Steps
    prepare: Callable[..., Prepared]
    begin: Callable[[Any, Prepared, Array], Carry]
    advance: Callable[..., Carry]


def make_sampling(
    networks: Networks,
    schedule: NoiseSchedule,
    options: Resolved,
    *,
    styled: bool,
    from_noise: bool = True,
    blocks: Blocks = "planned",
) -> Sampling:
    """Returns how `options` sample.

    Args:
        networks: of the model.
        schedule: of the model.
        options: how to generate.
        styled: there are style images.
        from_noise: not from a video, of whose steps `options.strength` says the share to run.
        blocks: see `make_denoiser`.
    """
    plan = make_plan(
        options.sampler,
        schedule,
        options.steps,
        eta=options.eta,
        karras=options.karras,
        strength=1.0 if from_noise else options.strength,
    )
    denoiser = make_denoiser(networks, schedule, options, styled=styled, blocks=blocks)

    def begin(unet, given: Prepared, x) -> Carry:
        return stay((solvers.start(x), denoiser.memory(unet, given, x)), "videos")

    def advance(unet, given: Prepared, keys, carry: Carry, first, stop) -> Carry:
        state, memory = carry
        denoise = denoiser.denoise(unet, given)
        return advance_with_memory(denoise, state, memory, plan, first, stop, keys)

    steps = steps_of(plan, schedule, options, styled=styled)
    return Sampling(plan, steps, denoiser.prepare, begin, advance)


def latent_shape(config: ModelConfig, options: Resolved) -> tuple[int, int, int, int]:
    """Returns frames, height, width and channels of a video's latents."""
    factor = config.vae.downsampling
    height, width = options.height // factor, options.width // factor
    return options.frames, height, width, config.unet.in_channels


def decoder(networks: Networks) -> Callable[..., Array]:
    """Returns (autoencoder parameters, latents) -> pixels, on each device of its own frames."""

    def vae_decode(vae, z):
        return over_rows(lambda z, vae: networks.vae_decode(vae, z), (z,), (vae,))

    return vae_decode


def frames_at_a_time(frames: int, most: int, devices: int) -> int:
    """Returns how many of so many frames are decoded together, each device at most `most`."""
    return min(most, math.ceil(frames / devices)) * devices


def first_noise(keys: Array, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Returns the noise each request starts from.

    Step i draws from fold_in(key, i), so the start takes a number that no step has.
    """
    first = jax.vmap(lambda key: jax.random.fold_in(key, 2**31))(keys)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(first)
