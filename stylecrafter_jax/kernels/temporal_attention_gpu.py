"""Attention over frames on GPU: forward and backward as one Pallas kernel for Triton each.

A program takes one head of 64 tokens, such as 4 positions of 16 frames; what lies between positions
is masked. Relative positions are visited one after another: each adds one diagonal of the logits
and one multiple of its value to the output. In the backward pass a program goes over several blocks
and adds up its part of the tables' gradients, and the parts are added up outside.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from stylecrafter_jax.kernels.head_tiles import (
    FIRST,
    PARAMETERS,
    SECOND,
    by_head,
    channels,
    merged,
    padded,
    total,
)
from stylecrafter_jax.kernels.temporal_attention_sizes import Sizes
from stylecrafter_jax.kernels.tiles import product, softmax_gradient

BLOCK = 64  # tokens of a program, the frames of one position at least
PARTS = 256  # programs of the backward pass that share one head
KEYS, VALUES = FIRST, SECOND  # of the tables


def forward(
    q: Float[Array, "t k"],
    k: Float[Array, "t k"],
    v: Float[Array, "t k"],
    tables: Float[Array, "2 d e"],
    sizes: Sizes,
) -> Float[Array, "t k"]:
    """Returns the attention of every token to those of its position.

    Row d of the tables, of keys and of values, is the distance d - (sizes.padded - 1).
    """
    q, k, v = (by_head(x, sizes.heads) for x in (q, k, v))
    width = padded(sizes.head_dim)
    rows = pl.BlockSpec((BLOCK, None, width), lambda i, h: (i, h, 0))
    whole = pl.BlockSpec((*tables.shape[:2], width), lambda i, h: (0, 0, 0))
    out = pl.pallas_call(
        functools.partial(_forward, sizes=sizes),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(q.shape[0] // BLOCK, sizes.heads),
        in_specs=[rows, rows, rows, whole],
        out_specs=rows,
        compiler_params=PARAMETERS,
        interpret=sizes.interpret,
        name="temporal_attention",
    )(q, k, v, tables)
    return merged(out)


def _forward(q_ref, k_ref, v_ref, tables_ref, out_ref, *, sizes: Sizes):
    mask = channels(q_ref.shape[-1], sizes.head_dim)
    q, k, v = (plgpu.load(ref, mask=mask, other=0.0) for ref in (q_ref, k_ref, v_ref))
    weights = _weights(q, k, tables_ref, sizes)

    def add(d, out):
        return out + _on_diagonal(weights, d, sizes) * _row(tables_ref, VALUES, d, mask)

    out = product(weights.astype(v.dtype), v)
    out = jax.lax.fori_loop(0, 2 * sizes.padded - 1, add, out)
    plgpu.store(out_ref, out.astype(out_ref.dtype), mask=mask)


def backward(
    q: Float[Array, "t k"],
    k: Float[Array, "t k"],
    v: Float[Array, "t k"],
    tables: Float[Array, "2 d e"],
    grad: Float[Array, "t k"],
    sizes: Sizes,
) -> tuple[Array, Array, Array, Array]:
    """Returns the gradients of q, k, v and, in float32, of the tables."""
    q, k, v, grad = (by_head(x, sizes.heads) for x in (q, k, v, grad))
    blocks, width = q.shape[0] // BLOCK, padded(sizes.head_dim)
    parts = max(n for n in range(1, min(PARTS, blocks) + 1) if blocks % n == 0)
    rows = pl.BlockSpec((q.shape[0] // parts, None, width), lambda p, h: (p, h, 0))
    table = (*tables.shape[:2], width)
    dq, dk, dv, dtables = pl.pallas_call(
        functools.partial(_backward, sizes=sizes),
        out_shape=(
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)),
            jax.ShapeDtypeStruct((parts, sizes.heads, *tables.shape), jnp.float32),
        ),
        grid=(parts, sizes.heads),
        in_specs=[rows, rows, rows, pl.BlockSpec(table, lambda p, h: (0, 0, 0)), rows],
        out_specs=(
            rows,
            rows,
            rows,
            pl.BlockSpec((None, None, *table), lambda p, h: (p, h, 0, 0, 0)),
        ),
        compiler_params=PARAMETERS,
        interpret=sizes.interpret,
        name="temporal_attention_backward",
    )(q, k, v, tables, grad)
    return merged(dq), merged(dk), merged(dv), dtables.sum((0, 1))


def _backward(
    q_ref, k_ref, v_ref, tables_ref, grad_ref, dq_ref, dk_ref, dv_ref, dtables_ref, *, sizes: Sizes
):
    mask = channels(q_ref.shape[-1], sizes.head_dim)
    distances = 2 * sizes.padded - 1

    def clear(d, _):
        for side in (KEYS, VALUES):
            zero = jnp.zeros((q_ref.shape[-1],), jnp.float32)
            plgpu.store(dtables_ref.at[side, d, :], zero, mask=mask[0])
        return 0

    jax.lax.fori_loop(0, distances, clear, 0)

    def step(i, _):
        own = pl.ds(i * BLOCK, BLOCK)
        q, k, v, grad = (
            plgpu.load(ref.at[own, :], mask=mask, other=0.0)
            for ref in (q_ref, k_ref, v_ref, grad_ref)
        )
        weights = _weights(q, k, tables_ref, sizes)

        def add_values(d, dweights):
            side = _row(tables_ref, VALUES, d, mask) * grad.astype(jnp.float32)
            return dweights + jnp.where(_diagonal(d, sizes), total(side), 0.0)

        dweights = jax.lax.fori_loop(0, distances, add_values, product(grad, v, "nt"))
        dlogits = softmax_gradient(weights, dweights) * sizes.scale

        def add_keys(d, dq):
            of_keys, of_values = (_on_diagonal(x, d, sizes) for x in (dlogits, weights))
            _add(dtables_ref, KEYS, d, of_keys * q.astype(jnp.float32), mask)
            _add(dtables_ref, VALUES, d, of_values * grad.astype(jnp.float32), mask)
            return dq + of_keys * _row(tables_ref, KEYS, d, mask)

        dq = product(dlogits.astype(k.dtype), k)
        dq = jax.lax.fori_loop(0, distances, add_keys, dq)
        dk = product(dlogits.astype(q.dtype), q, "tn")
        dv = product(weights.astype(grad.dtype), grad, "tn")
        for ref, tile in ((dq_ref, dq), (dk_ref, dk), (dv_ref, dv)):
            plgpu.store(ref.at[own, :], tile.astype(ref.dtype), mask=mask)
        return 0

    jax.lax.fori_loop(0, q_ref.shape[0] // BLOCK, step, 0)


def _weights(q: Array, k: Array, tables_ref, sizes: Sizes) -> Array:
    """Returns the attention of a block's tokens to each other."""
    mask = channels(q.shape[-1], sizes.head_dim)

    def add(d, logits):
        side = _row(tables_ref, KEYS, d, mask) * q.astype(jnp.float32)
        return logits + jnp.where(_diagonal(d, sizes), total(side), 0.0)

    logits = jax.lax.fori_loop(0, 2 * sizes.padded - 1, add, product(q, k, "nt"))
    return sizes.attended(logits)


def _diagonal(d: Array, sizes: Sizes) -> Array:
    """Returns which entries of a block's matrix lie at a distance."""
    return jnp.arange(BLOCK)[None] - jnp.arange(BLOCK)[:, None] == d - (sizes.padded - 1)


def _on_diagonal(x: Array, d: Array, sizes: Sizes) -> Array:
    """Returns every row's entry at a distance, as a column; 0 where there is none."""
    return total(jnp.where(_diagonal(d, sizes), x, 0.0))


def _row(tables_ref, side: np.int32, d: Array, mask: Array) -> Array:
    """Returns a table's row, in float32."""
    row = plgpu.load(tables_ref.at[side, d, :], mask=mask[0], other=0.0)
    return row.astype(jnp.float32)[None]


def _add(tables_ref, side: np.int32, d: Array, tile: Array, mask: Array) -> None:
    """Adds the sum of a tile's rows to a table's row."""
    at = tables_ref.at[side, d, :]
    plgpu.store(at, plgpu.load(at, mask=mask[0], other=0.0) + tile.sum(0), mask=mask[0])
