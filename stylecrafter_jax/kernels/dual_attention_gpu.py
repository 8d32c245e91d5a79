"""Dual cross-attention on GPU: forward and backward as Pallas kernels for Triton.

A program holds a block of queries of one batch row and walks over the heads. The LayerNorm needs
every head's style branch, which no program can keep, so the style's few logits are computed again:
for the mean, for the variance, for the output.

The backward pass is two kernels: the first finds, for every query, what the LayerNorm's gradient
needs of all heads; in the second a program walks over some blocks of queries for one head. Sums
over queries leave it in parts, which are added up outside.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from stylecrafter_jax.kernels.dual_attention_sizes import Sizes
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
from stylecrafter_jax.kernels.tiles import product, softmax_gradient

BLOCK = 64  # queries of a program
PARTS = 32  # programs of the backward pass that share one head of one batch row


def forward(
    q: Float[Array, "b n k"],
    kv: Float[Array, "2 b l k"],
    gain: Float[Array, " b"],
    norm: Float[Array, "2 k"],
    sizes: Sizes,
) -> Float[Array, "b n k"]:
    """Returns attention to text plus the gained, normed attention to style."""
    q, kv, norm = (by_head(x, sizes.heads) for x in (q, kv, norm))
    spec = _specs(kv, sizes)
    out = pl.pallas_call(
        functools.partial(_forward, sizes=sizes),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(q.shape[0], pl.cdiv(sizes.queries, BLOCK)),
        in_specs=[spec["all"], spec["rows"], spec["keys"], spec["norm"]],
        out_specs=spec["rows"],
        compiler_params=PARAMETERS,
        interpret=sizes.interpret,
        name="dual_attention",
    )(gain, q, kv, norm)
    return merged(out)


def _forward(gain_ref, q_ref, kv_ref, norm_ref, out_ref, *, sizes: Sizes):
    row = pl.program_id(0)
    kept = _kept(pl.program_id(1), q_ref.shape[-1], sizes)
    mean, inverse = _moments(q_ref, kv_ref, kept, row, sizes)

    def head(h, _):
        q, k, v = _head(q_ref, kv_ref, kept, h, sizes)
        logits = product(q, k, "nt") * sizes.scale
        normed = (product(sizes.over_style(logits).astype(v.dtype), v) - mean) * inverse
        normed = normed * _norm(norm_ref, FIRST, h, sizes) + _norm(norm_ref, SECOND, h, sizes)
        out = product(sizes.over_text(logits).astype(v.dtype), v) + gain_ref[row] * normed
        plgpu.store(out_ref.at[:, h, :], out.astype(out_ref.dtype), mask=kept)
        return 0

    jax.lax.fori_loop(0, sizes.heads, head, 0)


def backward(
    q: Float[Array, "b n k"],
    kv: Float[Array, "2 b l k"],
    gain: Float[Array, " b"],
    norm: Float[Array, "2 k"],
    grad: Float[Array, "b n k"],
    sizes: Sizes,
) -> tuple[Array, Array, Array]:
    """Returns the gradients of q and kv, and the sums that give those of gain and norm.

    The last is [2, b, k]: over the queries, `grad * normed style` without scale and bias, and
    `grad`; of no meaning where a row has no style. The gradient of kv and the sums are float32.
    """
    q, kv, norm, grad = (by_head(x, sizes.heads) for x in (q, kv, norm, grad))
    spec, rows = _specs(kv, sizes), q.shape[0]
    blocks = pl.cdiv(sizes.queries, BLOCK)
    call = functools.partial(pl.pallas_call, compiler_params=PARAMETERS, interpret=sizes.interpret)
    statistics = call(
        functools.partial(_statistics, sizes=sizes),
        out_shape=jax.ShapeDtypeStruct((rows, 4, sizes.queries), jnp.float32),
        grid=(rows, blocks),
        in_specs=[spec["all"], spec["rows"], spec["keys"], spec["norm"], spec["rows"]],
        out_specs=pl.BlockSpec((None, 4, BLOCK), lambda b, j: (b, 0, j)),
        name="dual_attention_statistics",
    )(gain, q, kv, norm, grad)
    parts = min(PARTS, blocks)
    tokens, width = kv.shape[2], padded(sizes.head_dim)
    whole = pl.BlockSpec((None, sizes.queries, None, width), lambda b, p, h: (b, 0, h, 0))
    keys = pl.BlockSpec((2, None, tokens, None, width), lambda b, p, h: (0, b, 0, h, 0))
    dq, dkv, sums = call(
        functools.partial(_gradients, sizes=sizes, parts=parts),
        out_shape=(
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((parts, *kv.shape), jnp.float32),
            jax.ShapeDtypeStruct((parts, 2, rows, *norm.shape[1:]), jnp.float32),
        ),
        grid=(rows, parts, sizes.heads),
        in_specs=[
            spec["all"],
            whole,
            keys,
            pl.BlockSpec((2, None, width), lambda b, p, h: (0, h, 0)),
            whole,
            pl.BlockSpec((None, 4, sizes.queries), lambda b, p, h: (b, 0, 0)),
        ],
        out_specs=(
            whole,
            pl.BlockSpec((None, 2, None, tokens, None, width), lambda b, p, h: (p, 0, b, 0, h, 0)),
            pl.BlockSpec((None, 2, None, None, width), lambda b, p, h: (p, 0, b, h, 0)),
        ),
        name="dual_attention_gradients",
    )(gain, q, kv, norm, grad, statistics)
    return merged(dq), merged(dkv.sum(0)), merged(sums.sum(0))


def _statistics(gain_ref, q_ref, kv_ref, norm_ref, grad_ref, out_ref, *, sizes: Sizes):
    """Writes mean and inverse deviation of the style branch, and two means of its gradient."""
    row, block = pl.program_id(0), pl.program_id(1)
    kept = _kept(block, q_ref.shape[-1], sizes)
    mean, inverse = _moments(q_ref, kv_ref, kept, row, sizes)

    def head(h, sums):
        grad = plgpu.load(grad_ref.at[:, h, :], mask=kept, other=0.0).astype(jnp.float32)
        dnormed = gain_ref[row] * _norm(norm_ref, FIRST, h, sizes) * grad
        normed = (_style(q_ref, kv_ref, kept, h, sizes) - mean) * inverse
        one, other = sums
        return one + total(dnormed), other + total(dnormed * normed)

    zero = jnp.zeros((BLOCK, 1), jnp.float32)
    styled = jnp.where(row < sizes.styled, sizes.heads, 0)
    one, other = jax.lax.fori_loop(0, styled, head, (zero, zero))
    width = sizes.heads * sizes.head_dim
    exists = block * BLOCK + jnp.arange(BLOCK) < sizes.queries
    for i, column in enumerate((mean, inverse, one / width, other / width)):
        plgpu.store(out_ref.at[np.int32(i), :], column[:, 0], mask=exists)


def _gradients(
    gain_ref,
    q_ref,
    kv_ref,
    norm_ref,
    grad_ref,
    statistics_ref,
    dq_ref,
    dkv_ref,
    sums_ref,
    *,
    sizes: Sizes,
    parts: int,
):
    row, part = pl.program_id(0), pl.program_id(1)
    width = q_ref.shape[-1]
    mask = channels(width, sizes.head_dim)
    k, v = (plgpu.load(kv_ref.at[side], mask=mask, other=0.0) for side in (FIRST, SECOND))
    scale = plgpu.load(norm_ref.at[FIRST], mask=mask[0], other=0.0)[None]

    def step(i, sums):
        dk, dv, of_normed, of_grad = sums
        block = i * parts + part
        kept = _kept(block, width, sizes)
        own = pl.ds(block * BLOCK, BLOCK)
        exists = block * BLOCK + jnp.arange(BLOCK) < sizes.queries
        mean, inverse, one, other = (
            plgpu.load(statistics_ref.at[np.int32(j), own], mask=exists, other=0.0)[:, None]
            for j in range(4)
        )
        q, grad = (plgpu.load(ref.at[own, :], mask=kept, other=0.0) for ref in (q_ref, grad_ref))
        logits = product(q, k, "nt") * sizes.scale
        to_text, to_style = sizes.over_text(logits), sizes.over_style(logits)
        normed = (product(to_style.astype(v.dtype), v) - mean) * inverse
        dstyle = inverse * (gain_ref[row] * scale * grad.astype(jnp.float32) - one - normed * other)
        dstyle = jnp.where(kept, dstyle, 0.0).astype(v.dtype)
        dlogits = softmax_gradient(to_text, product(grad, v, "nt"))
        dlogits += softmax_gradient(to_style, product(dstyle, v, "nt"))
        dlogits = (dlogits * sizes.scale).astype(k.dtype)
        plgpu.store(dq_ref.at[own, :], product(dlogits, k).astype(dq_ref.dtype), mask=kept)
        dv += product(to_text.astype(grad.dtype), grad, "tn")
        dv += product(to_style.astype(dstyle.dtype), dstyle, "tn")
        grad = grad.astype(jnp.float32)
        return (
            dk + product(dlogits, q, "tn"),
            dv,
            of_normed + (grad * jnp.where(kept, normed, 0.0)).sum(0),
            of_grad + grad.sum(0),
        )

    zero, flat = jnp.zeros(k.shape, jnp.float32), jnp.zeros((width,), jnp.float32)
    count = pl.cdiv(pl.cdiv(sizes.queries, BLOCK), parts)
    dk, dv, *sums = jax.lax.fori_loop(0, count, step, (zero, zero, flat, flat))
    for side in (FIRST, SECOND):
        plgpu.store(dkv_ref.at[side], (dk, dv)[side], mask=mask)
        plgpu.store(sums_ref.at[side], sums[side], mask=mask[0])


def _moments(q_ref, kv_ref, kept: Array, row: Array, sizes: Sizes) -> tuple[Array, Array]:
    """Returns mean and inverse deviation of the style branch over all heads of each query."""
    count = jnp.where(row < sizes.styled, sizes.heads, 0)
    width = sizes.heads * sizes.head_dim
    zero = jnp.zeros((BLOCK, 1), jnp.float32)

    def add(h, found):
        return found + total(_style(q_ref, kv_ref, kept, h, sizes))

    mean = jax.lax.fori_loop(0, count, add, zero) / width

    def add_square(h, found):
        centred = jnp.where(kept, _style(q_ref, kv_ref, kept, h, sizes) - mean, 0.0)
        return found + total(centred * centred)

    variance = jax.lax.fori_loop(0, count, add_square, zero) / width
    return mean, jax.lax.rsqrt(variance + sizes.epsilon)


def _style(q_ref, kv_ref, kept: Array, h: Array, sizes: Sizes) -> Array:
    q, k, v = _head(q_ref, kv_ref, kept, h, sizes)
    weights = sizes.over_style(product(q, k, "nt") * sizes.scale)
    return product(weights.astype(v.dtype), v)


def _head(q_ref, kv_ref, kept: Array, h: Array, sizes: Sizes) -> tuple[Array, Array, Array]:
    """Returns queries, keys and values of a head; 0 where there are none."""
    mask = channels(q_ref.shape[-1], sizes.head_dim)
    q = plgpu.load(q_ref.at[:, h, :], mask=kept, other=0.0)
    k, v = (plgpu.load(kv_ref.at[side, :, h, :], mask=mask, other=0.0) for side in (FIRST, SECOND))
    return q, k, v


def _norm(norm_ref, side: np.int32, h: Array, sizes: Sizes) -> Array:
    """Returns the LayerNorm's scale (side 0) or bias (side 1) of a head, as a row."""
    mask = channels(norm_ref.shape[-1], sizes.head_dim)[0]
    return plgpu.load(norm_ref.at[side, h, :], mask=mask, other=0.0)[None]


def _kept(block: Array, width: int, sizes: Sizes) -> Array:
    """Returns which entries of a tile of queries exist."""
    return (block * BLOCK + jnp.arange(BLOCK) < sizes.queries)[:, None] & channels(
        width, sizes.head_dim
    )


def _specs(kv: Array, sizes: Sizes) -> dict[str, pl.BlockSpec]:
    """Returns how blocks lie for programs of a batch row and a block of queries."""
    tile = (sizes.heads, padded(sizes.head_dim))
    return {
        "all": pl.BlockSpec(),
        "rows": pl.BlockSpec((None, BLOCK, *tile), lambda b, j: (b, j, 0, 0)),
        "keys": pl.BlockSpec((2, None, kv.shape[2], *tile), lambda b, j: (0, b, 0, 0, 0)),
        "norm": pl.BlockSpec((2, *tile), lambda b, j: (0, 0, 0)),
    }
