import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax.config import AutoencoderConfig
from stylecrafter_jax.models.vae_image import Decode, Encode, posterior
from tests.models.filled import fill, normal, shapes_of

MODEL = {"atol": 1e-4, "rtol": 1e-4}
# Nominal side 8: attention at the second of three levels, of side 4.
ATTENDS = AutoencoderConfig(
    ch=32, ch_mult=(1, 2, 1), num_res_blocks=2, attn_resolutions=(4,), resolution=8, embed_dim=3
)
PIXELS, LATENTS = normal(0, 2, 8, 12, 3), normal(1, 2, 2, 3, 3)


def attention_places(state):
    """Returns the modules with an attention's projection, less the middle's."""
    found = {name.removesuffix(".q.weight") for name in state if name.endswith(".q.weight")}
    return {name for name in found if ".mid." not in name}


def test_encoder_with_attention_is_the_originals(original):
    module = Encode(config=ATTENDS)
    variables, state = fill(module, PIXELS)
    assert attention_places(state) == {f"encoder.down.1.attn.{i}" for i in range(2)}
    wanted = original.apply(original.vae_encode, state, PIXELS, config=ATTENDS)
    assert_allclose(jax.jit(module.apply)(variables, PIXELS), wanted, **MODEL)


def test_decoder_with_attention_is_the_originals(original):
    module = Decode(config=ATTENDS)
    variables, state = fill(module, LATENTS)
    assert attention_places(state) == {f"decoder.up.1.attn.{i}" for i in range(3)}
    wanted = original.apply(original.vae_decode, state, LATENTS, config=ATTENDS)
    assert_allclose(jax.jit(module.apply)(variables, LATENTS), wanted, **MODEL)


@pytest.mark.parametrize(
    ("attends", "down", "up"),
    [
        ((8,), {"0"}, {"0"}),
        ((2,), {"2"}, {"2"}),
        ((8, 2), {"0", "2"}, {"0", "2"}),
        ((16, 1), set(), set()),
    ],
)
def test_attention_stands_at_the_levels_of_the_nominal_size(attends, down, up):
    config = AutoencoderConfig(
        ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=attends, resolution=8
    )
    encoder = shapes_of(Encode(config=config), jnp.zeros((1, 16, 16, 3)))
    decoder = shapes_of(Decode(config=config), jnp.zeros((1, 4, 4, 4)))
    assert {name.split(".")[2] for name in attention_places(encoder)} == down
    assert {name.split(".")[2] for name in attention_places(decoder)} == up


def test_posterior_halves_the_moments_and_bounds_the_variance():
    moments = jnp.array([0.5, -2.0, -50.0, 40.0]).reshape(1, 1, 1, 4)
    mean, logvar = posterior(moments)
    assert_allclose(mean.ravel(), [0.5, -2.0])
    assert_allclose(logvar.ravel(), [-30.0, 20.0])


def test_bfloat16_is_close_and_returns_float32():
    config = AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)
    z = normal(2, 1, 3, 4, 4)
    half, full = Decode(config=config, dtype=jnp.bfloat16), Decode(config=config)
    variables, _ = fill(full, z)
    found, wanted = (jax.jit(module.apply)(variables, z) for module in (half, full))
    assert found.dtype == jnp.float32
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    made = jax.eval_shape(lambda: half.init(jax.random.key(0), z))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
