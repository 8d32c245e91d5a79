"""Every kernel is lowered for GPU, and compiled for TPU without one, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import pytest

from stylecrafter_jax.kernels import dispatch, dual_attention, temporal_attention
from tests.kernels.agreement import with_gradients
from tests.kernels.topology import compiled_for

TPUS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
DTYPES = (jnp.bfloat16, jnp.float32)
# The largest and the narrowest level of the released UNet: tokens of 16 frames, heads.
LEVELS = ((2560, 5), (40, 20))


def dual(tokens, heads, dtype, head_dim=64):
    """Returns the fused operation and the kinds of its arguments: three branches, one styled."""
    k, of = heads * head_dim, jax.ShapeDtypeStruct
    text, style = of((3, 77, k), dtype), of((1, 8, k), dtype)
    q, norm = of((3, 16 * tokens, k), dtype), of((k,), jnp.float32)
    kinds = (q, text, text, style, style, of((1,), jnp.float32), norm, norm)
    return functools.partial(dual_attention.dual_attention, heads=heads, impl="pallas"), kinds


def temporal(tokens, heads, dtype, head_dim=64, frames=16):
    """Returns the fused operation and the kinds of its arguments: three branches."""
    rows = jax.ShapeDtypeStruct((3 * tokens, frames, heads * head_dim), dtype)
    table = jax.ShapeDtypeStruct((33, head_dim), jnp.float32)
    run = functools.partial(temporal_attention.temporal_attention, heads=heads, impl="pallas")
    return run, (rows, rows, rows, table, table)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kernel", [dual, temporal])
def test_kernels_are_lowered_for_cuda(monkeypatch, kernel, level, dtype):
    for module in (dual_attention, temporal_attention, dispatch):
        monkeypatch.setattr(module, "target", lambda: "gpu")
    function, kinds = kernel(*level, dtype)
    traced = jax.jit(with_gradients(function)).trace(*kinds, kinds[0])
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == {dual: 3, temporal: 2}[kernel]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kernel", [dual, temporal])
@pytest.mark.parametrize("topology", TPUS)
def test_kernels_are_compiled_for_tpu(topology, kernel, level, dtype):
    function, kinds = kernel(*level, dtype)
    program = compiled_for(topology, with_gradients(function), (*kinds, kinds[0]))
    assert program.as_text().count("tpu_custom_call") >= 2


@pytest.mark.parametrize("frames", [1, 4, 8, 33, 64])
@pytest.mark.parametrize("topology", TPUS)
def test_any_number_of_frames_is_compiled_for_tpu(topology, frames):
    function, kinds = temporal(40, 2, jnp.bfloat16, frames=frames)
    program = compiled_for(topology, with_gradients(function), (*kinds, kinds[0]))
    assert program.as_text().count("tpu_custom_call") >= 2
