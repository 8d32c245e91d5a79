"""Every implementation of attention over frames is the formula, with its gradients."""

import functools

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from numpy.testing import assert_allclose, assert_array_equal

from stylecrafter_jax.kernels import cache, temporal_attention_tpu
from stylecrafter_jax.kernels import temporal_attention as op
from stylecrafter_jax.kernels.lanes import LANES
from stylecrafter_jax.kernels.temporal_attention import relative_attention
from stylecrafter_jax.kernels.temporal_attention_sizes import Sizes
from tests.kernels.agreement import assert_agrees, few, implementation, normals
from tests.models.filled import normal

IMPLEMENTATIONS = ("xla", "tpu", "gpu")
LAYER = {"atol": 1e-5, "rtol": 1e-5}


@st.composite
def cases(draw):
    """Positions, frames, heads, width of a head, extent of the tables."""
    return (
        draw(st.integers(1, 20)),
        draw(st.sampled_from([1, 6, 16, 33, 64])),
        draw(st.integers(1, 4)),
        draw(st.sampled_from([8, 40, 64, 128])),
        draw(st.integers(1, 20)),
    )


def arrays(rows, frames, heads, head_dim, extent):
    tokens, table = (rows, frames, heads * head_dim), (2 * extent + 1, head_dim)
    return normals(tokens, tokens, tokens, table, table)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(case=cases())
@few
def test_values_and_gradients_are_the_formulas(name, case):
    found = implementation(op, name, heads=case[2])
    assert_agrees(found, functools.partial(op.reference, heads=case[2]), arrays(*case))


def test_values_and_gradients_in_parts_are_the_formulas(monkeypatch):
    monkeypatch.setattr(cache, "CACHE_BYTES", 20_000)
    found, reference = (functools.partial(f, heads=2) for f in (op.xla, op.reference))
    assert "length=5" in str(jax.make_jaxpr(found)(*arrays(10, 16, 2, 8, 3)))
    assert_agrees(found, reference, arrays(10, 16, 2, 8, 3))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_bfloat16_is_the_formula_to_its_own_rounding(name):
    found = implementation(op, name, heads=2)
    reference = functools.partial(op.reference, heads=2)
    assert_agrees(found, reference, arrays(9, 16, 2, 64, 16), jnp.bfloat16)


def test_none_takes_xla_where_the_kernel_is_not_known_to_be_faster():
    given = arrays(2, 3, 1, 8, 2)
    assert_allclose(op.temporal_attention(*given, heads=1), op.xla(*given, heads=1))


def test_a_named_kernel_says_what_it_does_not_cover():
    given = arrays(1, 65, 1, 8, 2)
    with pytest.raises(NotImplementedError, match="65 frames"):
        op.temporal_attention(*given, heads=1, impl="pallas")
    op.temporal_attention(*given, heads=1)


def test_interpreted_rotations_are_the_instructions():
    x, shift = normal(0, LANES, LANES), 113
    sizes = Sizes(heads=1, head_dim=8, frames=16, padded=16, interpret=True)

    def body(x_ref, out_ref):
        out_ref[...] = pltpu.roll(x_ref[...], shift, 1, stride=1, stride_axis=0)

    out = pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)
    assert_array_equal(out(x), temporal_attention_tpu._rotated(x, shift, sizes))


@pytest.mark.parametrize(
    ("queries", "keys", "causal"),
    [(4, 4, False), (9, 9, False), (3, 77, False), (6, 2, False), (4, 4, True), (9, 9, True)],
)
def test_relative_attention_is_the_originals(original, queries, keys, causal):
    heads, width, extent = 2, 8, 3
    q, k, v = (normal(i, 2, n, heads * width) for i, n in enumerate((queries, keys, keys)))
    tables = normal(3, 2 * extent + 1, width), normal(4, 2 * extent + 1, width)
    mask = jnp.tril(jnp.ones((queries, keys), bool)) if causal else None
    split = [y.reshape(2, -1, heads, width) for y in (q, k, v)]
    found = jax.jit(relative_attention)(*split, *tables, None if mask is None else mask[None])
    wanted = original.apply(
        lambda _, q, k, v, *tables, mask: original.relative_attend(q, k, v, heads, *tables, mask),
        {}, q, k, v, *tables, mask=mask,
    )  # fmt: skip
    assert_allclose(found.reshape(2, queries, -1), wanted, **LAYER)
