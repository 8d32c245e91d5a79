import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax import params as weights_of
from stylecrafter_jax.models.networks import init_params, networks, parameter_shapes
from tests.models.filled import normal
from tests.parity import weights

TEXT, STYLE = normal(1, 2, 5, 24), normal(2, 2, 3, 24)
X, T = normal(0, 2, 2, 2, 4, 4), jnp.array([3.0, 700.0])


@pytest.fixture(scope="module")
def small(tiny_config):
    """The tiny model with a UNet of one level, and its weights as NumPy arrays."""
    unet = dataclasses.replace(
        tiny_config.unet, model_channels=64, channel_mult=(1,), attention_resolutions=()
    )
    predictor = dataclasses.replace(tiny_config.adapter.scale_predictor, num_tokens=1)
    adapter = dataclasses.replace(tiny_config.adapter, scale_predictor=predictor, scale=0.8)
    config = dataclasses.replace(tiny_config, unet=unet, adapter=adapter)
    shapes = parameter_shapes(config)
    return config, {name: weights.tensor(name, y.shape) for name, y in shapes.items()}


def test_shapes_are_those_of_fresh_parameters(small):
    config, params = small
    made = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in params.items()}
    assert {v.dtype for v in made.values()} == {jnp.dtype("float32")}
    assert {name.split("/")[0] for name in params} == set(weights_of.PARTS)


def test_weights_in_numpy_serve_inside_a_scan(small):
    config, params = small
    nets = networks(config)
    scale = jnp.array([[0.4], [1.3]])

    def denoise(x, t):
        return nets.unet(params, x, jnp.full((2,), t), TEXT, STYLE, scale)

    def sample(x):
        return jax.lax.scan(lambda x, t: (x - 0.1 * denoise(x, t), None), x, T)[0]

    single = jax.jit(denoise)
    wanted = X
    for t in T:
        wanted = wanted - 0.1 * single(wanted, t)
    assert_allclose(jax.jit(sample)(X), wanted, atol=1e-5)


@pytest.fixture(scope="module")
def predict(small):
    """The UNet's prediction with style, of parameters and a compute dtype."""
    config, _ = small

    def run(params, dtype):
        return networks(config, dtype).unet(params, X, T, TEXT, STYLE)

    return jax.jit(run, static_argnums=1)


def test_bfloat16_is_close_and_returns_float32(small, predict):
    _, params = small
    wanted = predict(params, jnp.float32)
    for weights_dtype, error in ((jnp.float32, 0.05), (jnp.bfloat16, 0.1)):
        found = predict(weights_of.cast(params, weights_dtype), jnp.bfloat16)
        assert found.dtype == jnp.float32
        assert np.abs(found - wanted).max() < error * np.abs(wanted).max()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keys_and_values_given_are_those_computed_in_the_compute_dtype(small, predict, dtype):
    config, params = small
    nets = networks(config, dtype)

    def given(params):
        kv = nets.context_kv(params, TEXT, STYLE)
        return nets.unet(params, X, T, TEXT, STYLE, kv=kv), kv

    found, kv = jax.jit(given)(params)
    wanted = predict(params, dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(kv)} == {jnp.dtype(dtype)}
    # In bfloat16 the two programs may round differently.
    atol = 1e-5 if dtype == jnp.float32 else 0.05 * np.abs(wanted).max()
    assert_allclose(found, wanted, atol=atol)


def test_style_scale_is_weight_times_constant_times_one_plus_offset(small):
    config, params = small
    nets = networks(config)
    one = jax.jit(lambda style, text: nets.style_scale(params, style, text))(STYLE, TEXT)
    assert one.shape == (2, 1) and one.dtype == jnp.float32
    assert np.all((0 < one) & (one < 2 * 0.8))
    assert_allclose(nets.style_scale(params, STYLE, TEXT, 2.5), 2.5 * one, rtol=1e-6)
    assert_allclose(nets.style_scale(params, STYLE, TEXT, 0.0), np.zeros((2, 1)))
    fixed = dataclasses.replace(config.adapter, scale_predictor=None)
    plain = networks(dataclasses.replace(config, adapter=fixed))
    assert_allclose(plain.style_scale(params, STYLE, TEXT, 2.5), np.full((2, 1), 2.0), rtol=1e-6)


def test_attached_style_has_no_weights_of_its_own_in_the_unet(small):
    config, params = small
    attach = dataclasses.replace(config.adapter, fusion="attach")
    config = dataclasses.replace(config, adapter=attach)
    shapes = parameter_shapes(config)
    assert not weights_of.select(shapes, weights_of.STYLE_ATTENTION)
    assert set(params) - set(shapes) == set(weights_of.select(params, weights_of.STYLE_ATTENTION))
    kv = networks(config).context_kv(weights_of.select(params, "^unet"), TEXT)
    assert all(layer.k_style is None for layer in kv)


def test_autoencoder_goes_through_latents_of_its_own_size(small):
    config, params = small
    nets = networks(config)
    mean, logvar = jax.jit(lambda x: nets.vae_encode(params, x))(normal(3, 1, 8, 12, 3))
    assert mean.shape == logvar.shape == (1, 4, 6, 4)
    assert jax.jit(lambda z: nets.vae_decode(params, z))(mean).shape == (1, 8, 12, 3)


def test_references_and_their_weights_reach_the_style_tokens(small):
    config, params = small
    nets, tokens = networks(config), normal(4, 1, 4, 40)
    run = jax.jit(lambda *args: nets.style_tokens(params, *args))
    alone = run(tokens[:, :2])
    both = run(tokens, jnp.array([[1.0, 1.0, 0.0, 0.0]]))
    assert alone.shape == (1, 3, 24)
    assert_allclose(both, alone, atol=1e-5)
