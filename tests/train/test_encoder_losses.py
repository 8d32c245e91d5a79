import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax.models.networks import Networks
from stylecrafter_jax.train.encoder_losses import contrastive, cross_entropy, reconstruction
from stylecrafter_jax.train.step import row_keys

KEY = jax.random.key(0)


def stand_in(**functions) -> Networks:
    """Networks that return what a test says."""
    return Networks(**{name: functions.get(name) for name in Networks._fields})  # type: ignore


def autoencoder(mean, logvar, error) -> Networks:
    """An autoencoder that returns its input plus an error, whatever its latents."""
    seen = {}

    def encode(params, x):
        seen["x"] = x
        shape = (*x.shape[:-1], 2)
        return jnp.full(shape, mean), jnp.full(shape, logvar)

    return stand_in(vae_encode=encode, vae_decode=lambda params, z: seen["x"] + error)


def test_reconstruction_is_absolute_error_and_divergence():
    pixels = np.arange(2 * 1 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 1, 4, 4, 3)
    loss = reconstruction(autoencoder(mean=2.0, logvar=math.log(0.25), error=0.5), kl_weight=0.1)
    value, metrics = loss({}, {"pixels": jnp.asarray(pixels)}, row_keys(KEY, 2))
    # KL of N(2, 1/4) from N(0, 1), by hand
    kl = 0.5 * (4 + 0.25 - 1 + math.log(4))
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-6)
    np.testing.assert_allclose(value, 0.5 + 0.1 * kl, rtol=1e-6)
    # an error of 0.5 of a range of 2 is 0.25 of a range of 1
    np.testing.assert_allclose(metrics["psnr"], -20 * math.log10(0.25), rtol=1e-5)
    np.testing.assert_allclose(metrics["latent_std"], 0.0, atol=1e-6)


def embeddings(image, text) -> Networks:
    return stand_in(
        embed_image=lambda params, pixels: jnp.asarray(image),
        embed_text=lambda params, ids, end: jnp.asarray(text),
    )


def batch(captions: list[int]) -> dict[str, Any]:
    ids = jnp.asarray([[0, caption, 1] for caption in captions])
    return {"ids": ids, "pixels": jnp.zeros((len(captions), 1, 4, 4, 3), jnp.uint8)}


def clip_loss(image, text, captions, scale=1.0):
    loss = contrastive(embeddings(image, text), end=1, image_size=4)
    return loss(
        {"text_encoder/logit_scale": jnp.log(scale)}, batch(captions), row_keys(KEY, len(captions))
    )


def test_contrast_of_two_pairs_by_hand():
    eye = np.eye(2, dtype=np.float32)
    value, metrics = clip_loss(eye, eye, [2, 3], scale=3.0)
    np.testing.assert_allclose(value, math.log(1 + math.exp(-3)), rtol=1e-6)
    assert metrics["accuracy"] == 1
    value, metrics = clip_loss(eye, eye[::-1], [2, 3], scale=3.0)
    np.testing.assert_allclose(value, math.log(1 + math.exp(3)), rtol=1e-6)
    assert metrics["accuracy"] == 0


def test_equal_captions_are_right_answers_for_each_other():
    image, text = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[1, 0, 2]]
    value, metrics = clip_loss(image, text, [2, 2, 3])
    assert metrics["accuracy"] == 1
    # Swapping the texts of equal captions changes nothing.
    swapped, _ = clip_loss(image, text[[1, 0, 2]], [2, 2, 3])
    np.testing.assert_allclose(value, swapped, rtol=1e-6)


def test_scale_is_bounded():
    _, metrics = clip_loss(np.eye(2), np.eye(2), [2, 3], scale=1e6)
    np.testing.assert_allclose(metrics["logit_scale"], 100.0, rtol=1e-5)


@pytest.mark.parametrize("answers", [1, 2, 4])
def test_cross_entropy_of_even_guesses_is_the_log_of_their_number(answers):
    right = jnp.zeros((3, 4), bool).at[:, :answers].set(True)
    value = cross_entropy(jnp.zeros((3, 4)), right)
    np.testing.assert_allclose(value, math.log(4), rtol=1e-6)
    assert cast(Any, value).shape == ()
