"""A new autoencoder of patches that begins as their principal components.

Gradient descent learns the large components of patches quickly and the small ones, which are the
details, slowly. Here the first step already is the best linear autoencoder. It is exact in spite of
the norms and SiLUs on the way: components come as pairs (x, -x), for which silu(x) - silu(-x) = x,
and a large constant pair in every group makes its norm a division by a constant.
"""

import math

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8

from stylecrafter_jax.config import AutoencoderConfig, ConfigError
from stylecrafter_jax.params import Params

CONSTANT = 20.0  # against components of unit variance
LOG_VARIANCE = -6.0  # of the posterior
# Other channels begin with so much of their random weights.
REST = 0.1
CLOSED = ("/conv2/kernel", "/proj_out/kernel")  # residual branches begin as zero


def begin_as_components(
    config: AutoencoderConfig, params: Params, pictures: UInt8[np.ndarray, "n h w 3"]
) -> Params:
    """Returns an autoencoder's parameters that reconstruct from principal components of patches.

    Args:
        config: has one stage, so that patches are all it encodes.
        params: fresh parameters of the whole autoencoder, full names.
        pictures: typical ones; sides are multiples of the patch size.

    Raises:
        ConfigError: the autoencoder has several stages, or too few channels for its latents.
    """
    groups, p, z = config.norm_groups, config.patch_size, config.z_channels
    width = config.ch * config.ch_mult[0]
    each = math.ceil(z / groups)  # components of a group
    if len(config.ch_mult) > 1 or not z == config.embed_dim <= 3 * p * p:
        raise ConfigError("patch components need one stage, and latents no longer than patches")
    if 2 * each + 2 > width // groups:
        raise ConfigError(f"{z} latents need more than {width} channels in {groups} groups")
    pixels = pictures.astype(np.float32) / 127.5 - 1.0
    patches = rearrange(pixels, "n (h p) (w q) c -> (n h w) (p q c)", p=p, q=p)
    mean = patches.mean(0)
    variances, vectors = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    basis = vectors[:, ::-1][:, :z]  # patch values, components
    deviation = np.sqrt(variances[::-1][:z])
    # Latents are between components and white noise: details stay smaller, but not by as much.
    gain = np.sqrt(deviation) / np.sqrt(deviation.mean())
    whiten, colour = basis / deviation, basis * deviation
    # (channel, component, sign) of the pairs, and the constants' channels
    places = [
        ((i // each) * (width // groups) + 2 * (i % each) + k, i, 1.0 - 2.0 * k)
        for i in range(z)
        for k in range(2)
    ]
    constants = [
        (g * (width // groups) + 2 * each + k, CONSTANT * (1.0 - 2.0 * k))
        for g in range(groups)
        for k in range(2)
    ]
    new = {name: np.array(value, np.float32) for name, value in params.items()}
    for name in new:
        if name.endswith(CLOSED) or name.endswith("/conv2/bias") or name.endswith("/proj_out/bias"):
            new[name][:] = 0.0

    def lift(prefix: str, matrix: Float[np.ndarray, "i z"], offset: Float[np.ndarray, " i"]):
        """Makes `conv_in` return the pairs of (x - offset) @ matrix, and the constants."""
        kernel, bias = new[f"{prefix}/conv_in/kernel"], new[f"{prefix}/conv_in/bias"]
        kernel *= REST
        middle = kernel.shape[0] // 2
        for channel, i, sign in places:
            kernel[..., channel] = 0.0
            kernel[middle, middle, :, channel] = sign * matrix[:, i]
            bias[channel] = -sign * offset @ matrix[:, i]
        for channel, value in constants:
            kernel[..., channel], bias[channel] = 0.0, value

    def read(prefix: str, matrix: Float[np.ndarray, "z o"], offset: Float[np.ndarray, " o"]):
        """Makes `conv_out` return x @ matrix + offset of the pairs behind norm and SiLU."""
        kernel, bias = new[f"{prefix}/conv_out/kernel"], new[f"{prefix}/conv_out/bias"]
        kernel[:], bias[:] = 0.0, offset
        # What the norm divides by, with unit variance of the components.
        per_group = width // groups
        scale = math.sqrt((2 * CONSTANT**2 + 2 * each) / per_group)
        middle = kernel.shape[0] // 2
        for channel, i, sign in places:
            kernel[middle, middle, channel] = sign * scale * matrix[i]

    def identity(name: str):
        kernel, bias = new[f"{name}/kernel"], new[f"{name}/bias"]
        kernel[:], bias[:] = np.eye(kernel.shape[-1], dtype=np.float32), 0.0

    lift("vae/encoder", whiten, mean)
    moments = np.concatenate([np.diag(gain), np.zeros((z, z))], axis=1)
    read("vae/encoder", moments, np.concatenate([np.zeros(z), np.full(z, LOG_VARIANCE)]))
    identity("vae/quant_conv")
    identity("vae/post_quant_conv")
    lift("vae/decoder", np.diag(1.0 / gain), np.zeros(z))
    read("vae/decoder", colour.T, mean)
    return new
