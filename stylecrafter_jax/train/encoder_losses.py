"""The losses of the networks that later stages keep frozen: autoencoder and CLIP."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from stylecrafter_jax.media.images import clip_pixels
from stylecrafter_jax.models.networks import Networks
from stylecrafter_jax.params import Params
from stylecrafter_jax.train.objective import normal
from stylecrafter_jax.train.step import Batch, Loss, Metrics

# CLIP's own bound on the factor of its cosines.
LARGEST_LOGIT_SCALE = math.log(100.0)


def reconstruction(nets: Networks, *, kl_weight: float) -> Loss:
    """Returns the autoencoder's loss: absolute error of the pixels, and a little KL divergence.

    The original adds a perceptual and an adversarial loss, whose networks we do not have. Metrics:
    `psnr` in dB for pixels in [0, 1], `latent_std`, the deviation of all latent means.

    Args:
        nets: the networks.
        kl_weight: of the KL divergence from the standard normal, mean over all latent values; the
            pixels' error is a mean, too.

    Source: latent-diffusion, ldm/modules/losses/contperceptual.py, LPIPSWithDiscriminator.
    """

    def loss(params: Params, batch: Batch, keys: Key[Array, " b"]) -> tuple[Array, Metrics]:
        pixels = batch["pixels"].astype(jnp.float32) / 127.5 - 1.0
        frames = pixels.shape[1]
        pixels = pixels.reshape(-1, *pixels.shape[2:])
        mean, logvar = nets.vae_encode(params, pixels)
        noise = normal(keys, (frames, *mean.shape[1:])).reshape(mean.shape)
        z = mean + jnp.exp(0.5 * logvar) * noise
        error = nets.vae_decode(params, z) - pixels
        kl = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
        psnr = -10.0 * jnp.log10(jnp.mean(jnp.square(error)) / 4.0)
        metrics = {"psnr": psnr, "kl": kl, "latent_std": jnp.std(mean)}
        return jnp.mean(jnp.abs(error)) + kl_weight * kl, metrics

    return loss


def contrastive(nets: Networks, *, end: int, image_size: int) -> Loss:
    """Returns CLIP's loss: each picture finds its caption in the batch, each caption its picture.

    Pictures whose captions are the same are right answers for each other. Metrics: `accuracy`, how
    often a picture's best caption is its own.

    Args:
        nets: the networks.
        end: the tokenizer's end id.
        image_size: side of the image tower's input.

    Source: Radford et al. 2021, arXiv 2103.00020, fig. 3; open_clip, src/open_clip/loss.py.
    """

    def loss(params: Params, batch: Batch, keys: Key[Array, " b"]) -> tuple[Array, Metrics]:
        ids = batch["ids"]
        text = nets.embed_text(params, ids, jnp.int32(end))
        image = nets.embed_image(params, clip_pixels(batch["pixels"][:, 0], image_size))
        scale = jnp.exp(jnp.minimum(params["text_encoder/logit_scale"], LARGEST_LOGIT_SCALE))
        logits = scale * image @ text.T
        same = jnp.all(ids[:, None] == ids[None], axis=-1)
        value = 0.5 * (cross_entropy(logits, same) + cross_entropy(logits.T, same))
        best = jnp.argmax(logits, axis=1)
        right = jnp.take_along_axis(same, best[:, None], axis=1)
        return value, {"accuracy": jnp.mean(right), "logit_scale": scale}

    return loss


def cross_entropy(logits: Float[Array, "n m"], right: Bool[Array, "n m"]) -> Float[Array, ""]:
    """Returns the mean cross-entropy of rows whose right answers are all equally likely."""
    share = right / jnp.sum(right, axis=1, keepdims=True)
    return -jnp.mean(jnp.sum(share * jax.nn.log_softmax(logits, axis=1), axis=1))
