"""The factor that gives an autoencoder's latents unit variance, as the noise schedule expects."""

import jax
import numpy as np

from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.data.pipeline import make_batches
from stylecrafter_jax.models.networks import networks
from stylecrafter_jax.params import Params, select
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train.experiment import Experiment
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.streams import make_streams

PICTURES = 256


def latent_scale(
    experiment: Experiment, config: ModelConfig, params: Params, tokenizer: Tokenizer
) -> float:
    """Returns 1 / deviation of the latent means of the first pictures that a run trains on.

    Args:
        experiment: the run.
        config: the model.
        params: with the trained autoencoder.
        tokenizer: the model's.

    Source: latent-diffusion, ldm/models/diffusion/ddpm.py, on_train_batch_start (scale_by_std).
    """
    styled = STAGES[experiment.stage].styled
    encode = jax.jit(networks(config).vae_encode)
    autoencoder, means, seen = select(params, "^vae/"), [], 0
    streams = make_streams(experiment.data, tokenizer, styled=styled)
    with make_batches(streams, seed=experiment.train.seed) as batches:
        for batch in batches:
            pixels = batch["pixels"][:, 0].astype(np.float32) / 127.5 - 1.0
            means.append(np.asarray(encode(autoencoder, pixels)[0]))
            seen += len(pixels)
            if seen >= PICTURES:
                break
    return float(1.0 / np.concatenate(means).std())
