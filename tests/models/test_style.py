import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax.config import ScaleEncoderConfig, StyleTransformerConfig
from stylecrafter_jax.models.style import MultiheadAttention, ScaleEncoder, StyleTransformer
from tests.models.filled import fill, normal

STYLE = StyleTransformerConfig(in_dim=16, out_dim=12, num_heads=4, num_tokens=3, n_layers=2)
SCALE = ScaleEncoderConfig(in_dim=12, num_heads=4, num_tokens=5, n_layers=1)
# Three references of four tokens each, for two videos.
TOKENS = normal(0, 2, 12, 16)
FIRST, SECOND, THIRD = (TOKENS[:, 4 * i : 4 * i + 4] for i in range(3))
SAME = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def style():
    """Image tokens, and weights or None -> style tokens."""
    module = StyleTransformer(config=STYLE)
    variables, _ = fill(module, TOKENS)
    run = jax.jit(module.apply)
    return lambda tokens, weights=None: run(variables, tokens, weights)


def each(*weights):
    """One weight per token, for references of four tokens."""
    return jnp.repeat(jnp.tile(jnp.array([weights], jnp.float32), (2, 1)), 4, axis=1)


def test_weights_of_one_are_no_weights(style):
    assert_allclose(style(TOKENS, each(1, 1, 1)), style(TOKENS), **SAME)


def test_weight_of_two_is_the_image_given_twice(style):
    twice = jnp.concatenate([TOKENS, SECOND], axis=1)
    assert_allclose(style(TOKENS, each(1, 2, 1)), style(twice), **SAME)
    assert np.abs(style(twice) - style(TOKENS)).max() > 1e-3


def test_weight_of_zero_is_the_image_not_given(style):
    found = style(TOKENS, each(1, 0, 1))
    assert_allclose(found, style(jnp.concatenate([FIRST, THIRD], axis=1)), **SAME)
    assert np.isfinite(style(TOKENS, each(0, 0, 0))).all()


def test_order_of_references_does_not_matter(style):
    assert_allclose(style(jnp.concatenate([THIRD, FIRST, SECOND], 1)), style(TOKENS), **SAME)


def test_gradients_flow_to_the_weighted_tokens_alone():
    module = StyleTransformer(config=STYLE)
    variables, _ = fill(module, TOKENS)

    def loss(tokens):
        return jnp.square(module.apply(variables, tokens, each(1, 0, 2))).sum()

    grads = jax.jit(jax.grad(loss))(TOKENS)
    assert np.isfinite(grads).all()
    sizes = np.abs(grads).reshape(2, 3, 4, 16).max(axis=(0, 2, 3))
    assert sizes[1] == 0.0 and sizes[0] > 1e-3 and sizes[2] > 1e-3


def test_packed_attention_is_pytorchs():
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's own module")
    x = normal(0, 2, 5, 16)
    module = MultiheadAttention(heads=4, dtype=jnp.float32)
    variables, state = fill(module, x)
    reference = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    reference.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    with torch.no_grad():
        wanted = reference(*[torch.tensor(np.asarray(x))] * 3)[0].numpy()
    assert_allclose(module.apply(variables, x), wanted, **SAME)


def test_offsets_of_the_scales_lie_in_one_around_zero():
    module, style, text = ScaleEncoder(config=SCALE), normal(1, 2, 3, 12), normal(2, 2, 7, 12)
    variables, _ = fill(module, style, text)
    offsets = jax.jit(module.apply)(variables, 100.0 * style, text)
    assert offsets.shape == (2, 5, 1)
    assert np.abs(offsets).max() < 1.0


def test_bfloat16_is_close_and_parameters_are_float32(style):
    module = StyleTransformer(config=STYLE, dtype=jnp.bfloat16)
    variables, _ = fill(module, TOKENS)
    found = jax.jit(module.apply)(variables, TOKENS, each(1, 2, 1))
    wanted = style(TOKENS, each(1, 2, 1))
    assert np.abs(found.astype(jnp.float32) - wanted).max() < 0.05 * np.abs(wanted).max()
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), TOKENS))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
