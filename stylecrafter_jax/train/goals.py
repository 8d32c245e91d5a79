"""Which loss a stage descends, made of its config."""

import functools

import jax.numpy as jnp

from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.diffusion.schedules import make_schedule
from stylecrafter_jax.models.networks import networks
from stylecrafter_jax.models.unet_video import Mode
from stylecrafter_jax.train.encoder_losses import contrastive, reconstruction
from stylecrafter_jax.train.experiment import Experiment
from stylecrafter_jax.train.objective import denoising, encode
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.step import Loss


def make_loss(experiment: Experiment, config: ModelConfig, mode: Mode, *, end: int) -> Loss:
    """Returns the loss of a stage for batches that the UNet, if there is one, sees in `mode`.

    Args:
        experiment: the run.
        config: the model.
        mode: how the UNet sees the frames.
        end: the token that ends a text.
    """
    options = experiment.loss
    nets = networks(config, jnp.dtype(experiment.train.compute_dtype), experiment.train.remat)
    goal, image_size = STAGES[experiment.stage].goal, config.clip.vision.image_size
    if goal == "reconstruction":
        return reconstruction(nets, kl_weight=options.kl_weight)
    if goal == "contrast":
        return contrastive(nets, end=end, image_size=image_size)
    features = functools.partial(
        encode, nets, scale_factor=config.vae.scale_factor, image_size=image_size
    )
    return denoising(
        nets,
        make_schedule(config.schedule),
        features,
        mode=mode,
        min_snr_gamma=options.min_snr_gamma,
        weight_floor=options.weight_floor,
        noise_offset=options.noise_offset,
        timestep_shift=options.timestep_shift,
    )
