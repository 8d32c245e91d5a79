"""Work in parts is the work at once, and needs no more memory for more of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax.kernels import cache
from tests.kernels.agreement import normals, with_gradients


@pytest.mark.parametrize(
    ("rows", "row_bytes", "wanted"),
    [(12, 10, 1), (12, 31, 4), (12, 25, 3), (7, 30, 7), (3, 999, 3)],
)
def test_parts_are_as_few_as_fit(monkeypatch, rows, row_bytes, wanted):
    monkeypatch.setattr(cache, "CACHE_BYTES", 120)
    assert cache.parts(rows, row_bytes) == wanted


def test_accelerators_and_meshes_get_one_part(monkeypatch):
    monkeypatch.setattr(cache, "CACHE_BYTES", 1)
    for name, value in {"target": "tpu", "devices_in_use": 2}.items():
        with monkeypatch.context() as patch:
            patch.setattr(cache, name, lambda value=value: value)
            assert cache.parts(8, 8) == 1
    assert cache.parts(8, 8) == 8


@pytest.mark.parametrize("inner", [1, 3])
def test_in_turn_is_a_map_with_its_gradients(inner):
    x, y = normals((4, inner, 5), (4, 5, inner, 2))
    grad = normals((4, inner, 2))[0]

    def mix(x, y):
        return jnp.tanh(jnp.einsum("ne,end->nd", x, y))

    found = with_gradients(lambda *xy: cache.in_turn(mix, *xy))(x, y, grad)
    wanted = with_gradients(jax.vmap(mix))(x, y, grad)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_allclose(ours, theirs, atol=1e-6, rtol=1e-6)


def test_in_parts_is_the_function_of_all_rows(monkeypatch):
    x, w = normals((6, 2, 3), (3, 4))
    wanted = np.tanh(np.asarray(x) @ np.asarray(w))
    for cache_bytes in (1, 20, 1000):
        monkeypatch.setattr(cache, "CACHE_BYTES", cache_bytes)
        found = cache.in_parts(lambda rows: jnp.tanh(rows @ w), 10, x)
        assert_allclose(found, wanted, atol=1e-6)


def test_loops_one_after_another_share_their_memory():
    def temporary(loops):
        def run(x):
            for _ in range(loops):
                x = cache.in_turn(lambda row: row @ jnp.cos(row), x)
            return x

        compiled = jax.jit(run).lower(jax.ShapeDtypeStruct((8, 64, 64), jnp.float32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    each = 4 * 8 * 64 * 64
    assert temporary(12) < temporary(3) + 2 * each
