import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax.kernels import cache
from stylecrafter_jax.models.layers import (
    JOINT,
    PER_FRAME,
    Downsample,
    EmbeddingMLP,
    GroupNorm,
    ResBlock,
    TemporalConv,
    Upsample,
    timestep_embedding,
)
from tests.models.filled import fill, normal, shapes_of

F32 = {"dtype": jnp.float32}
LAYER = {"atol": 1e-5, "rtol": 1e-5}
VIDEO = (2, 3, 4, 6, 32)


@pytest.mark.parametrize(("axes", "joint"), [(PER_FRAME, False), (JOINT, True)])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-5])
def test_group_norm_is_pytorchs_per_frame_or_jointly(original, axes, joint, epsilon):
    x = 3e-3 * normal(0, *VIDEO[:-1], 64)  # so small that epsilon counts
    module = GroupNorm(epsilon=epsilon, axes=axes)
    variables, state = fill(module, x)
    wanted = original.apply(original.group_norm, state, x, joint=joint, eps=epsilon)
    assert_allclose(module.apply(variables, x), wanted, **LAYER)


def test_group_norm_is_exact_around_a_large_mean(original):
    x = 3e-3 * normal(0, *VIDEO) + 5.0
    module = GroupNorm(epsilon=1e-6)
    variables, state = fill(module, x)
    exact = {name: value.astype(np.float64) for name, value in state.items()}
    wanted = original.apply(
        original.group_norm, exact, np.asarray(x, np.float64), joint=False, eps=1e-6
    )
    # The mean itself is known to half a unit in its last place, 2e-7 / 3e-3 of a deviation.
    assert_allclose(module.apply(variables, x), wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("width", [4, 5, 7])
def test_timestep_embedding_is_the_originals_for_even_and_odd_widths(original, width):
    t = np.array([0.0, 1.0, 20.5, 999.0], np.float32)
    wanted = original.apply(lambda _, t: original.timestep_embedding(t, width), {}, t)
    found = timestep_embedding(jnp.asarray(t), width)
    assert found.shape == (4, width)
    assert_allclose(found, wanted, atol=1e-4, rtol=0)  # angles up to 999 in float32


def test_time_embedding_is_float32_whatever_it_is_given(original):
    t = np.array([3.0, 500.0], np.float32)
    emb = timestep_embedding(jnp.asarray(t), 8)
    module = EmbeddingMLP(width=16)
    variables, state = fill(module, emb)
    state = {f"time_embed.{name}": value for name, value in state.items()}
    wanted = original.apply(lambda w, t: original.embedding_mlp(w, "time_embed", t, 8), state, t)
    assert_allclose(module.apply(variables, emb), wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("resample", "scale_shift", "out_channels"),
    [
        ("none", True, 32),
        ("none", True, 64),
        ("up", False, 32),
        ("up", True, 64),
        ("down", False, 64),
        ("down", True, 32),
    ],
)
def test_res_block_is_the_originals(original, resample, scale_shift, out_channels):
    x, emb = normal(1, *VIDEO), normal(2, 2, 12)
    module = ResBlock(
        out_channels=out_channels, resample=resample, use_scale_shift_norm=scale_shift, **F32
    )
    variables, state = fill(module, x, emb, temporal=True)
    wanted = original.apply(
        original.res_block, state, x, emb, resample=resample, scale_shift=scale_shift
    )
    found = jax.jit(module.apply, static_argnums=3)(variables, x, emb, True)
    assert_allclose(found, wanted, **LAYER)


def test_res_block_convolves_time_in_video_only(original):
    x, emb = normal(1, *VIDEO), normal(2, 2, 12)
    module = ResBlock(out_channels=32, temporal_conv="space_time", **F32)
    variables, state = fill(module, x, emb, temporal=True)
    run = jax.jit(module.apply, static_argnums=3)
    for temporal in (True, False):
        wanted = original.apply(original.res_block, state, x, emb, convolves_time=temporal)
        assert_allclose(run(variables, x, emb, temporal), wanted, **LAYER)


@pytest.mark.parametrize("spatial", [False, True])
def test_temporal_convolutions_are_the_originals(original, spatial):
    x = normal(3, *VIDEO)
    module = TemporalConv(spatial=spatial, **F32)
    variables, state = fill(module, x)
    wide, narrow = (3, 3, 3) if spatial else (3, 1, 1), (3, 1, 1)
    kernels = {name: value.shape[2:] for name, value in state.items() if value.ndim == 5}
    assert kernels == {
        "conv1.2.weight": wide,
        "conv2.3.weight": wide,
        "conv3.3.weight": narrow,
        "conv4.3.weight": narrow,
    }
    wanted = original.apply(original.temporal_conv, state, x)
    assert_allclose(jax.jit(module.apply)(variables, x), wanted, **LAYER)


@pytest.mark.parametrize("learned", [True, False])
def test_downsampling_is_the_originals(original, learned):
    x = normal(4, *VIDEO)
    module = Downsample(learned=learned, **F32)
    variables, state = fill(module, x)
    wanted = original.apply(original.downsample, state, x, learned=learned)
    assert_allclose(module.apply(variables, x), wanted, **LAYER)


@pytest.mark.parametrize("cache_bytes", [1, 7000])
def test_convolutions_in_parts_are_the_originals(original, monkeypatch, cache_bytes):
    monkeypatch.setattr(cache, "CACHE_BYTES", cache_bytes)
    x, emb = normal(1, *VIDEO), normal(2, 2, 12)
    module = ResBlock(out_channels=64, **F32)
    variables, state = fill(module, x, emb, temporal=True)
    wanted = original.apply(original.res_block, state, x, emb)
    found = jax.jit(module.apply, static_argnums=3)(variables, x, emb, True)
    assert_allclose(found, wanted, **LAYER)
    module = Upsample(learned=True, **F32)
    variables, state = fill(module, x)
    wanted = original.apply(original.upsample, state, x, learned=True)
    assert_allclose(module.apply(variables, x), wanted, **LAYER)


@pytest.mark.parametrize("learned", [True, False])
def test_upsampling_is_the_originals(original, learned):
    x = normal(5, *VIDEO)
    module = Upsample(learned=learned, **F32)
    variables, state = fill(module, x)
    wanted = original.apply(original.upsample, state, x, learned=learned)
    assert_allclose(module.apply(variables, x), wanted, **LAYER)


def test_resampling_without_convolution_has_no_weights():
    x = normal(0, 1, 1, 2, 2, 32)
    assert shapes_of(Downsample(learned=False, **F32), x) == {}
    assert shapes_of(Upsample(learned=False, **F32), x) == {}


def test_group_norm_keeps_float32_statistics_in_bfloat16():
    x = normal(6, *VIDEO) + 100.0
    module = GroupNorm(epsilon=1e-5, silu=True, dtype=jnp.bfloat16)
    variables, _ = fill(module, x)
    found = module.apply(variables, jnp.asarray(x, jnp.bfloat16))
    exact = GroupNorm(epsilon=1e-5, silu=True).apply(
        variables, jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)
    )
    assert found.dtype == jnp.bfloat16
    assert_allclose(found.astype(jnp.float32), exact, atol=0.02, rtol=0.01)


def test_gradients_of_group_norm_are_pytorchs(original):
    torch = pytest.importorskip("torch")
    x, direction = normal(7, 1, 2, 3, 3, 32), normal(8, 1, 2, 3, 3, 32)
    module = GroupNorm(epsilon=1e-5, axes=JOINT)
    variables, state = fill(module, x)
    found = jax.grad(lambda x: (module.apply(variables, x) * direction).sum())(jnp.asarray(x))
    leaf = torch.tensor(np.moveaxis(x, -1, 1), requires_grad=True)
    y = original.group_norm(original.tensors(state), leaf, joint=True, eps=1e-5)
    (y * torch.tensor(np.moveaxis(direction, -1, 1))).sum().backward()
    assert_allclose(found, np.moveaxis(leaf.grad.numpy(), 1, -1), atol=1e-4, rtol=1e-4)
