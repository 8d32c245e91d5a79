import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from stylecrafter_jax.config import AutoencoderConfig, ConfigError
from stylecrafter_jax.models.networks import init_params, networks
from stylecrafter_jax.params import select
from stylecrafter_jax.train.patch_basis import begin_as_components
from tests.conftest import SMALL

VAE = AutoencoderConfig(
    ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=4, embed_dim=4, norm_groups=2, patch_size=4
)


def model(**changes):
    return dataclasses.replace(SMALL, vae=dataclasses.replace(VAE, **changes))


def pictures(count, seed=0):
    """Smooth pictures: their patches have few large components."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 4, 4, 3))
    return coarse.repeat(3, 1).repeat(3, 2).astype(np.uint8)  # 12x12, not aligned to patches


def best_linear(pixels, fit):
    """Returns `pixels` reconstructed from the four principal components of 4x4 patches of `fit`."""

    def patches(x):
        return rearrange(x, "n (h p) (w q) c -> (n h w) (p q c)", p=4, q=4)

    rows, mean = patches(pixels), patches(fit).mean(0)
    basis = np.linalg.svd(patches(fit) - mean, full_matrices=False)[2][:4]
    out = (rows - mean) @ basis.T @ basis + mean
    return rearrange(out, "(n h w) (p q c) -> n (h p) (w q) c", p=4, q=4, h=3, w=3)


def test_new_autoencoder_is_the_best_linear_one():
    config = model()
    fresh = jax.jit(lambda key: select(init_params(config, key), "^vae/"))(jax.random.key(0))
    params = begin_as_components(config.vae, fresh, pictures(200))
    assert {n: v.shape for n, v in params.items()} == {n: v.shape for n, v in fresh.items()}
    nets = networks(config)
    seen = pictures(6, seed=1).astype(np.float32) / 127.5 - 1.0
    mean, logvar = jax.jit(nets.vae_encode)(params, jnp.asarray(seen))
    expected = best_linear(seen, pictures(200).astype(np.float64) / 127.5 - 1.0)
    got = np.asarray(jax.jit(nets.vae_decode)(params, mean))
    error, distance = np.square(expected - seen).mean(), np.square(got - expected).mean()
    assert distance < 0.01 * error  # the norms divide by nearly constants, not quite
    np.testing.assert_allclose(np.asarray(logvar), -6.0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch_mult": (1, 1)}, "need one stage"),
        ({"embed_dim": 3, "z_channels": 4}, "need one stage"),
        ({"z_channels": 16, "embed_dim": 16}, "16 latents need more than 32 channels in 2 groups"),
    ],
)
def test_impossible_autoencoders_are_refused(changes, message):
    vae = dataclasses.replace(VAE, **changes)
    with pytest.raises(ConfigError, match=message):
        begin_as_components(vae, {}, pictures(2))
