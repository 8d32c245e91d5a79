import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax.kernels import cache
from stylecrafter_jax.models.transformer_blocks import (
    GEGLU,
    LayerNorm,
    SpatialTransformer,
    TemporalBlock,
    TemporalTransformer,
)
from tests.models.filled import fill, normal

F32 = {"dtype": jnp.float32}
LAYER = {"atol": 2e-5, "rtol": 1e-5}  # two blocks of four layers
HEADS = {"heads": 2, "head_dim": 8}  # narrower than the channels, as some settings make it
VIDEO = normal(0, 2, 4, 2, 3, 32)
TEXT, STYLE = normal(1, 2, 7, 12), normal(2, 2, 3, 12)
CONTEXT = normal(3, 2, 77, 12)


def causal(frames):
    return jnp.tril(jnp.ones((1, frames, frames), bool))


@pytest.mark.parametrize(
    ("use_linear", "heads"),
    [(True, HEADS), (False, HEADS), (False, {"heads": 2, "head_dim": 16})],
)
def test_spatial_transformer_is_the_originals(original, use_linear, heads):
    depth, first = 2, 3
    scale = jnp.abs(normal(4, 2, 6))
    module = SpatialTransformer(
        **heads,
        depth=depth,
        use_linear=use_linear,
        layer=first,
        fusion="dual",
        use_norm=True,
        **F32,
    )
    variables, state = fill(module, VIDEO, TEXT, STYLE)
    assert state["proj_in.weight"].ndim == (2 if use_linear else 4)
    wanted = original.apply(
        original.spatial_transformer, state, VIDEO, TEXT, STYLE, scale,
        heads=2, depth=depth, linear=use_linear, first=first,
    )  # fmt: skip
    found = jax.jit(module.apply)(variables, VIDEO, TEXT, STYLE, scale)
    assert_allclose(found, wanted, **LAYER)


def test_spatial_transformer_without_norm_of_the_style_is_the_originals(original):
    options = {"depth": 1, "use_linear": True, "layer": 0, "fusion": "dual", "use_norm": False}
    module = SpatialTransformer(**HEADS, **options, **F32)
    variables, state = fill(module, VIDEO, TEXT, STYLE)
    wanted = original.apply(
        original.spatial_transformer, state, VIDEO, TEXT, STYLE,
        heads=2, depth=1, linear=True, use_norm=False,
    )  # fmt: skip
    assert_allclose(jax.jit(module.apply)(variables, VIDEO, TEXT, STYLE), wanted, **LAYER)


@pytest.mark.parametrize(
    ("kind", "use_linear", "relative"),
    [
        ("plain", False, None),
        ("plain", False, 2),
        ("causal", True, None),
        ("causal", False, 2),
        ("context", True, 2),
        ("context", False, 2),
        ("context", True, None),
    ],
)
def test_temporal_transformer_is_the_originals(original, use_linear, relative, kind):
    context = CONTEXT if kind == "context" else None
    module = TemporalTransformer(
        **HEADS,
        depth=2,
        use_linear=use_linear,
        relative=relative,
        self_attention_only=context is None,
        **F32,
    )
    mask = causal(4) if kind == "causal" else None
    variables, state = fill(module, VIDEO, context, mask)
    assert state["proj_in.weight"].ndim == (2 if use_linear else 3)
    wanted = original.apply(
        original.temporal_transformer, state, VIDEO, context,
        heads=2, depth=2, linear=use_linear, relative=relative is not None, causal=kind == "causal",
    )  # fmt: skip
    assert_allclose(jax.jit(module.apply)(variables, VIDEO, context, mask), wanted, **LAYER)


def temporal_block(context=None, relative=2):
    x = normal(5, 3, 4, 16)
    module = TemporalBlock(**HEADS, relative=relative, **F32)
    variables, _ = fill(module, x[None], context, None, None)
    apply = jax.jit(module.apply)

    def run(x, mask):
        return apply(variables, x[None], context, None if mask is None else mask[None], None)[0]

    return x, run


@pytest.mark.parametrize("relative", [None, 2])
def test_with_a_causal_mask_a_later_frame_changes_no_earlier_one(relative):
    x, run = temporal_block(relative=relative)
    before, after = run(x, causal(4)), run(x.at[:, 2].multiply(-1.0), causal(4))
    assert_allclose(after[:, :2], before[:, :2], atol=1e-6)
    assert np.abs(after[:, 2:] - before[:, 2:]).max(axis=(0, 2)).min() > 1e-2
    assert np.abs(run(x.at[:, 2].multiply(-1.0), None) - run(x, None))[:, :2].max() > 1e-2


@pytest.mark.parametrize("relative", [None, 2])
def test_frames_that_attend_to_themselves_alone_may_be_permuted(relative):
    x, run = temporal_block(relative=relative)
    alone, order = jnp.eye(4, dtype=bool)[None], jnp.array([2, 0, 3, 1])
    found = run(x, alone)
    assert_allclose(run(x[:, order], alone), found[:, order], atol=1e-6)
    assert_allclose(run(x[:, 1:2], None), found[:, 1:2], **LAYER)
    if relative is not None:
        assert np.abs(run(x[:, order], None) - run(x, None)[:, order]).max() > 1e-2


def test_context_masked_out_is_context_not_given():
    options = {"depth": 1, "use_linear": True, "relative": None, "self_attention_only": False}
    module = TemporalTransformer(**HEADS, **options, **F32)
    variables, _ = fill(module, VIDEO, TEXT)
    both = jnp.concatenate([TEXT, STYLE], axis=1)
    is_text = jnp.broadcast_to(jnp.arange(10)[None] < 7, (2, 10))
    run = jax.jit(module.apply)
    found = run(variables, VIDEO, both, None, is_text)
    assert_allclose(found, run(variables, VIDEO, TEXT), **LAYER)


def test_layer_norm_is_pytorchs(original):
    x = 3e-3 * normal(0, 2, 5, 16)
    variables, state = fill(LayerNorm(), x)
    state = {f"norm.{name}": value for name, value in state.items()}
    wanted = original.apply(lambda w, x: w.layer_norm("norm", x), state, x)
    assert_allclose(LayerNorm().apply(variables, x), wanted, **LAYER)


@pytest.mark.parametrize("cache_bytes", [1, 1000, cache.CACHE_BYTES])
def test_geglu_is_the_originals_at_once_and_in_parts(original, monkeypatch, cache_bytes):
    monkeypatch.setattr(cache, "CACHE_BYTES", cache_bytes)
    x = normal(1, 2, 5, 16)
    variables, state = fill(GEGLU(**F32), x)
    wanted = original.apply(original.feed_forward, state, x)
    assert_allclose(GEGLU(**F32).apply(variables, x), wanted, **LAYER)


def test_layer_norm_is_float32_on_bfloat16():
    x = (normal(0, 2, 5, 16) + 100.0).astype(jnp.bfloat16)
    variables, _ = fill(LayerNorm(), x)
    found = LayerNorm().apply(variables, x)
    assert found.dtype == jnp.float32
    assert_allclose(found, LayerNorm().apply(variables, x.astype(jnp.float32)), atol=1e-6)
