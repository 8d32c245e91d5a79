import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax import params as weights_of
from stylecrafter_jax.models.attention import (
    DualCrossAttention,
    SelfAttention,
    TemporalAttention,
    context_kv,
)
from tests.models.filled import fill, normal, shapes_of

F32 = {"dtype": jnp.float32}
LAYER = {"atol": 1e-5, "rtol": 1e-5}
HEADS = {"heads": 4, "head_dim": 8}
B, F, N, C = 2, 3, 5, 24
FRAMES = normal(0, B, F, N, C)
TEXT, STYLE = normal(1, B, 7, 12), normal(2, B, 3, 12)


def dual(fusion="dual", use_norm=True, dtype=jnp.float32):
    return DualCrossAttention(**HEADS, fusion=fusion, use_norm=use_norm, dtype=dtype)


def run(module, *args):
    return jax.jit(module.apply)(*args)


@pytest.mark.parametrize("relative", [None, 2])
@pytest.mark.parametrize("crossed", [False, True])
def test_temporal_attention_is_the_originals(original, relative, crossed):
    x, context = normal(0, 6, 4, C), normal(1, 6, 77, 12) if crossed else None
    module = TemporalAttention(**HEADS, relative=relative, **F32)
    own = [None if y is None else y[None] for y in (x, context)]
    variables, state = fill(module, *own)
    assert ("relative_position_k.embeddings_table" in state) == (relative is not None)
    wanted = original.apply(
        original.attention, state, x, context, heads=4, relative=relative is not None
    )
    assert_allclose(run(module, variables, *own)[0], wanted, **LAYER)


def test_relative_tables_reach_as_far_as_the_extent():
    x = normal(0, 1, 1, 2, C)
    shapes = shapes_of(TemporalAttention(**HEADS, relative=16, **F32), x)
    assert shapes["relative_position_k.embeddings_table"] == (33, 8)
    assert shapes["relative_position_v.embeddings_table"] == (33, 8)


def test_self_attention_is_the_originals(original):
    x = normal(0, 3, N, C)
    module = SelfAttention(**HEADS, **F32)
    variables, state = fill(module, x[None])
    wanted = original.apply(original.attention, state, x, heads=4)
    assert_allclose(run(module, variables, x[None])[0], wanted, **LAYER)


def rows(y):
    """One row per frame, as the original repeats its contexts."""
    return None if y is None else jnp.repeat(y, F, axis=0)


@pytest.mark.parametrize("use_norm", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_dual_attention_is_the_originals(original, use_norm, scaled):
    scale = jnp.array([0.3, 1.7]) if scaled else None
    module = dual(use_norm=use_norm)
    variables, state = fill(module, FRAMES, TEXT, STYLE)
    assert ("norm_style.weight" in state) == use_norm
    wanted = original.apply(
        original.dual_attention, state, FRAMES.reshape(B * F, N, C),
        rows(TEXT), rows(STYLE), rows(scale), heads=4, use_norm=use_norm,
    )  # fmt: skip
    found = run(module, variables, FRAMES, TEXT, STYLE, scale)
    assert_allclose(found.reshape(B * F, N, C), wanted, **LAYER)


def test_rescaling_to_the_texts_norm_has_the_originals_gradient(original):
    torch = pytest.importorskip("torch")
    module, direction = dual(use_norm=False), normal(9, *FRAMES.shape)
    variables, state = fill(module, FRAMES, TEXT, STYLE)

    def loss(x, text, style):
        return (module.apply(variables, x, text, style) * direction).sum()

    found = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(FRAMES, TEXT, STYLE)
    leaves = [torch.tensor(np.asarray(y), requires_grad=True) for y in (FRAMES, TEXT, STYLE)]
    x, text, style = leaves
    y = original.dual_attention(
        original.tensors(state), x.reshape(B * F, N, C), text.repeat_interleave(F, 0),
        style.repeat_interleave(F, 0), heads=4, use_norm=False,
    )  # fmt: skip
    (y.reshape(FRAMES.shape) * torch.tensor(np.asarray(direction))).sum().backward()
    for ours, leaf in zip(found, leaves, strict=True):
        assert_allclose(ours, leaf.grad.numpy(), atol=1e-4, rtol=1e-4)


def test_attached_style_is_more_text_under_one_softmax(original):
    module = dual("attach")
    variables, state = fill(module, FRAMES, TEXT, STYLE)
    assert not any("style" in name for name in state)
    wanted = original.apply(
        original.attention, state, FRAMES.reshape(B * F, N, C),
        rows(jnp.concatenate([TEXT, STYLE], axis=1)), heads=4,
    )  # fmt: skip
    found = run(module, variables, FRAMES, TEXT, STYLE)
    assert_allclose(found.reshape(B * F, N, C), wanted, **LAYER)
    plain = run(module, variables, FRAMES, jnp.concatenate([TEXT, STYLE], axis=1))
    assert_allclose(found, plain, **LAYER)


def test_scale_zero_is_no_style():
    module = dual()
    variables, _ = fill(module, FRAMES, TEXT, STYLE)
    plain = run(module, variables, FRAMES, TEXT)
    found = run(module, variables, FRAMES, TEXT, STYLE, jnp.zeros(B))
    assert_allclose(found, plain, atol=1e-6)
    assert np.abs(run(module, variables, FRAMES, TEXT, STYLE) - plain).max() > 0.1


def test_scale_moves_the_output_in_a_straight_line():
    module = dual()
    variables, _ = fill(module, FRAMES, TEXT, STYLE)

    def at(scale):
        return run(module, variables, FRAMES, TEXT, STYLE, jnp.full(B, scale))

    assert_allclose(at(2.5) - at(0.0), 2.5 * (at(1.0) - at(0.0)), **LAYER)
    assert_allclose(at(1.0), run(module, variables, FRAMES, TEXT, STYLE), **LAYER)


@pytest.mark.parametrize("fusion", ["dual", "attach"])
@pytest.mark.parametrize("use_norm", [True, False])
def test_a_batch_of_styled_and_unstyled_rows_is_each_alone(fusion, use_norm):
    module = dual(fusion, use_norm)
    variables, _ = fill(module, FRAMES, TEXT, STYLE)
    scale = jnp.array([0.6])
    both = run(module, variables, FRAMES, TEXT, STYLE[:1], scale)
    styled = run(module, variables, FRAMES[:1], TEXT[:1], STYLE[:1], scale)
    plain = run(module, variables, FRAMES[1:], TEXT[1:])
    assert_allclose(both, jnp.concatenate([styled, plain]), **LAYER)


@pytest.mark.parametrize("fusion", ["dual", "attach"])
@pytest.mark.parametrize("style", [None, STYLE[:1], STYLE], ids=["plain", "partly", "styled"])
def test_keys_and_values_given_are_those_computed(fusion, style):
    module = dual(fusion)
    variables, _ = fill(module, FRAMES, TEXT, STYLE)
    flat = weights_of.flatten({"layer": variables["params"]})
    kv = context_kv(flat, "layer", TEXT, style)
    assert (kv.k_style is None) == (style is None)
    found = run(module, variables, FRAMES, TEXT, style, None, kv)
    assert_allclose(found, run(module, variables, FRAMES, TEXT, style), **LAYER)


def test_frames_do_not_see_each_other():
    module = dual(use_norm=False)
    variables, _ = fill(module, FRAMES, TEXT, STYLE)
    found = run(module, variables, FRAMES[:, ::-1], TEXT, STYLE)
    assert_allclose(found[:, ::-1], run(module, variables, FRAMES, TEXT, STYLE), **LAYER)


def test_bfloat16_is_close_and_keeps_the_norm_in_float32():
    module = dual(dtype=jnp.bfloat16)
    args = (FRAMES, TEXT, STYLE)
    variables, _ = fill(dual(), *args)
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    found = run(module, variables, *(y.astype(jnp.bfloat16) for y in args))
    assert found.dtype == jnp.bfloat16
    exact = dual().apply(variables, *args)
    assert_allclose(found.astype(jnp.float32), exact, atol=0.05)
