"""Every implementation of dual cross-attention is the formula, with its gradients."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from stylecrafter_jax.kernels import dual_attention as op
from stylecrafter_jax.kernels import dual_attention_tpu
from tests.kernels.agreement import assert_agrees, few, implementation, normals

IMPLEMENTATIONS = ("xla", "tpu", "gpu")


@st.composite
def cases(draw):
    """Rows, rows with a style, queries, text and style tokens, heads, width of a head."""
    rows = draw(st.integers(1, 3))
    return (
        rows,
        draw(st.integers(1, rows)),
        draw(st.integers(1, 150)),
        draw(st.sampled_from([1, 77, 130])),
        draw(st.integers(1, 24)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from([8, 40, 64, 128])),
    )


def arrays(rows, styled, queries, text, style, heads, head_dim):
    k = heads * head_dim
    text_shape, style_shape = (rows, text, k), (styled, style, k)
    return normals(
        (rows, queries, k), text_shape, text_shape, style_shape, style_shape, (styled,), (k,), (k,)
    )


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(case=cases())
@few
def test_values_and_gradients_are_the_formulas(name, case):
    heads = case[5]
    found = implementation(op, name, heads=heads)
    assert_agrees(found, functools.partial(op.reference, heads=heads), arrays(*case))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_bfloat16_is_the_formula_to_its_own_rounding(name):
    found = implementation(op, name, heads=2)
    reference = functools.partial(op.reference, heads=2)
    assert_agrees(found, reference, arrays(2, 1, 33, 77, 8, 2, 64), jnp.bfloat16)


def test_last_block_of_queries_may_be_a_part(monkeypatch):
    monkeypatch.setattr(dual_attention_tpu, "LARGEST_BLOCK", 16)
    found = implementation(op, "tpu", heads=2)
    assert_agrees(found, functools.partial(op.reference, heads=2), arrays(2, 1, 40, 5, 3, 2, 64))


def test_rows_without_a_style_are_attended_to_text_alone():
    q, k, v, *rest = arrays(3, 1, 10, 7, 4, 2, 16)
    out = op.reference(q, k, v, *rest, heads=2)
    silent = op.reference(q, k, v, *rest[:2], 0.0 * rest[2], *rest[3:], heads=2)
    assert_allclose(out[1:], silent[1:], rtol=1e-6)
    assert np.abs(out[0] - silent[0]).max() > 0.1


def test_none_takes_xla_where_the_kernel_is_not_known_to_be_faster():
    given = arrays(1, 1, 5, 3, 2, 1, 8)
    assert_allclose(op.dual_attention(*given, heads=1), op.xla(*given, heads=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 12}, "heads of 12 channels"),
        ({"text": 2000}, "2002 tokens"),
    ],
)
def test_a_named_kernel_says_what_it_does_not_cover(change, message):
    case = {"rows": 1, "styled": 1, "queries": 2, "text": 3, "style": 2, "heads": 1, "head_dim": 8}
    given = arrays(**(case | change))
    with pytest.raises(NotImplementedError, match=message):
        op.dual_attention(*given, heads=1, impl="pallas")
    op.dual_attention(*given, heads=1)


def test_other_types_are_left_to_xla():
    given = [x.astype(jnp.float16) for x in arrays(1, 1, 5, 3, 2, 1, 8)]
    with pytest.raises(NotImplementedError, match="float16"):
        op.dual_attention(*given, heads=1, impl="pallas")


@pytest.mark.parametrize(
    ("rows", "heads", "message"),
    [
        (1, 1, "2 rows have a style, but there are 1"),
        (2, 3, "3 heads do not divide the width 8"),
    ],
)
def test_impossible_arguments_are_named(rows, heads, message):
    q, k, v, *rest = arrays(2, 2, 5, 3, 2, 1, 8)
    with pytest.raises(ValueError, match=message):
        op.dual_attention(q[:rows], k[:rows], v[:rows], *rest, heads=heads)
