"""Attention against a float64 softmax average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax.kernels import cache, self_attention
from stylecrafter_jax.kernels.self_attention import attention
from tests.kernels.agreement import normals, with_gradients
from tests.models.filled import normal

LAYER = {"atol": 1e-5, "rtol": 1e-5}


def exact_attention(q, k, v, mask=None):
    q, k, v = (np.asarray(y, np.float64) for y in (q, k, v))
    logits = np.einsum("bnme,blme->bmnl", q, k) / np.sqrt(q.shape[-1])
    if mask is not None:
        logits = np.where(np.asarray(mask)[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bmnl,blme->bnme", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_a_softmax_average_of_the_values(masked):
    q, k, v = normal(0, 2, 5, 4, 8), normal(1, 2, 6, 4, 8), normal(2, 2, 6, 4, 8)
    mask = jnp.asarray(np.random.default_rng(3).random((2, 5, 6)) > 0.4).at[..., 0].set(True)
    mask = mask if masked else None
    assert_allclose(attention(q, k, v, mask), exact_attention(q, k, v, mask), **LAYER)


def test_attention_row_by_row_is_attention_at_once(monkeypatch):
    q, k, v = normal(0, 3, 5, 2, 8), normal(1, 3, 6, 2, 8), normal(2, 3, 6, 2, 8)

    def run():  # a function of its own each time, so that JAX traces it anew
        def loss(q, k, v):
            y = attention(q, k, v)
            return jnp.square(y).sum(), y

        grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        return str(jax.make_jaxpr(loss)(q, k, v)), jax.jit(grad)(q, k, v)

    at_once, wanted = run()
    monkeypatch.setattr(self_attention, "LOGITS_BYTES", 0)
    row_by_row, found = run()
    assert "scan" in row_by_row and "scan" not in at_once
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_allclose(ours, theirs, atol=1e-6, rtol=1e-6)


def test_attention_has_float32_logits_and_softmax_in_bfloat16():
    q, k, v = (normal(i, 1, 4, 1, 32) for i in range(3))
    half = [jnp.asarray(4.0 * y, jnp.bfloat16) for y in (q, k, v)]
    found = attention(*half)
    assert found.dtype == jnp.bfloat16
    exact = exact_attention(*(y.astype(jnp.float32) for y in half))
    # Logits near 100 in bfloat16 would be wrong by 0.25, and the weights by a quarter.
    assert_allclose(found.astype(jnp.float32), exact, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("impl", ["splash", "cudnn"])
def test_others_platforms_kernels_say_so(impl):
    q = normal(0, 1, 512, 1, 64)
    with pytest.raises(NotImplementedError, match=f"{impl} attention does not cover the platform"):
        attention(q, q, q, impl=impl)


def test_long_sequences_are_flash_attention_on_a_tpu(monkeypatch):
    monkeypatch.setattr(self_attention, "target", lambda: "tpu")
    long, short = normal(0, 2, 640, 4, 64), normal(0, 2, 160, 4, 64)
    # A function of its own each time, so that JAX traces it anew.
    flash, plain = (str(jax.make_jaxpr(lambda x: attention(x, x, x))(x)) for x in (long, short))
    assert "pallas_call" in flash and "pallas_call" not in plain


@pytest.mark.parametrize(
    ("shape", "keys"),
    [((3, 40, 4, 8), 40), ((2, 90, 3, 8), 70), ((1, 97, 2, 8), 60), ((2, 60, 1, 16), 500)],
)
@pytest.mark.parametrize("cache_bytes", [1, 40_000, 120_000])
def test_attention_in_a_cache_is_attention(monkeypatch, shape, keys, cache_bytes):
    monkeypatch.setattr(cache, "CACHE_BYTES", cache_bytes)
    q, k, v = normals(shape, (shape[0], keys, *shape[2:]), (shape[0], keys, *shape[2:]))
    found = with_gradients(self_attention.attention)(q, k, v, q)
    wanted = with_gradients(jax.nn.dot_product_attention)(q, k, v, q)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
