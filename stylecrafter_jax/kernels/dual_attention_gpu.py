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
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from stylecrafter_jax.kernels.dual_attention_sizes import Sizes
from stylecrafter_jax.kernels.tiles import columns, product, softmax, softmax_gradient

BLOCK = 64  # queries of a program
PARTS = 32  # programs of the backward pass that share one head of one batch row
SIDES = (np.int32(0), np.int32(1))  # keys and values; not int: the interpreter's masked loads
PARAMETERS = plgpu.CompilerParams(num_warps=4, num_stages=2)


def forward(
    q: Float[Array, "b n k"],
    kv: Float[Array, "2 b l k"],
    gain: Float[Array, " b"],
    norm: Float[Array, "2 k"],
    sizes: Sizes,
) -> Float[Array, "b n k"]:
    """Returns attention to text plus the gained, normed attention to style."""
    q, kv, norm = (_by_head(x, sizes) for x in (q, kv, norm))
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
    return rearrange(out, "b n m e -> b n (m e)")


def _forward(gain_ref, q_ref, kv_ref, norm_ref, out_ref, *, sizes: Sizes):
    row = pl.program_id(0)
    kept = _kept(pl.program_id(1), q_ref.shape[-1], sizes)
    mean, inverse = _moments(q_ref, kv_ref, kept, row, sizes)

    def head(h, _):
        q, k, v = _head(q_ref, kv_ref, kept, h, sizes)
        logits = product(q, k, "nt") * sizes.scale
        normed = (product(_over_style(logits, sizes).astype(v.dtype), v) - mean) * inverse
        normed = normed * _norm(norm_ref, SIDES[0], h, sizes) + _norm(norm_ref, SIDES[1], h, sizes)
        out = product(_over_text(logits, sizes).astype(v.dtype), v) + gain_ref[row] * normed
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
    q, kv, norm, grad = (_by_head(x, sizes) for x in (q, kv, norm, grad))
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
    tokens, width = kv.shape[2], _padded(sizes)
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
    merge = functools.partial(rearrange, pattern="... m e -> ... (m e)")
    return merge(dq), merge(dkv.sum(0)), merge(sums.sum(0))


def _statistics(gain_ref, q_ref, kv_ref, norm_ref, grad_ref, out_ref, *, sizes: Sizes):
    """Writes mean and inverse deviation of the style branch, and two means of its gradient."""
    row, block = pl.program_id(0), pl.program_id(1)
    kept = _kept(block, q_ref.shape[-1], sizes)
    mean, inverse = _moments(q_ref, kv_ref, kept, row, sizes)

    def head(h, sums):
        grad = plgpu.load(grad_ref.at[:, h, :], mask=kept, other=0.0).astype(jnp.float32)
        dnormed = gain_ref[row] * _norm(norm_ref, SIDES[0], h, sizes) * grad
        normed = (_style(q_ref, kv_ref, kept, h, sizes) - mean) * inverse
        one, other = sums
        return one + _total(dnormed), other + _total(dnormed * normed)

    zero = jnp.zeros((BLOCK, 1), jnp.float32)
    styled = jnp.where(row < sizes.styled, sizes.heads, 0)
    one, other = jax.lax.fori_loop(0, styled, head, (zero, zero))
    channels = sizes.heads * sizes.head_dim
    exists = block * BLOCK + jnp.arange(BLOCK) < sizes.queries
    for i, column in enumerate((mean, inverse, one / channels, other / channels)):
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
    channels = _channels(width, sizes)
    k, v = (plgpu.load(kv_ref.at[side], mask=channels, other=0.0) for side in SIDES)
    scale = plgpu.load(norm_ref.at[SIDES[0]], mask=channels[0], other=0.0)[None]

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
        to_text, to_style = _over_text(logits, sizes), _over_style(logits, sizes)
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
    for side in SIDES:
        plgpu.store(dkv_ref.at[side], (dk, dv)[side], mask=channels)
        plgpu.store(sums_ref.at[side], sums[side], mask=channels[0])


def _moments(q_ref, kv_ref, kept: Array, row: Array, sizes: Sizes) -> tuple[Array, Array]:
    """Returns mean and inverse deviation of the style branch over all heads of each query."""
    count = jnp.where(row < sizes.styled, sizes.heads, 0)
    channels = sizes.heads * sizes.head_dim
    zero = jnp.zeros((BLOCK, 1), jnp.float32)

    def add(h, total):
        return total + _total(_style(q_ref, kv_ref, kept, h, sizes))

    mean = jax.lax.fori_loop(0, count, add, zero) / channels

    def add_square(h, total):
        centred = jnp.where(kept, _style(q_ref, kv_ref, kept, h, sizes) - mean, 0.0)
        return total + _total(centred * centred)

    variance = jax.lax.fori_loop(0, count, add_square, zero) / channels
    return mean, jax.lax.rsqrt(variance + sizes.epsilon)


def _style(q_ref, kv_ref, kept: Array, h: Array, sizes: Sizes) -> Array:
    q, k, v = _head(q_ref, kv_ref, kept, h, sizes)
    weights = _over_style(product(q, k, "nt") * sizes.scale, sizes)
    return product(weights.astype(v.dtype), v)


def _head(q_ref, kv_ref, kept: Array, h: Array, sizes: Sizes) -> tuple[Array, Array, Array]:
    """Returns queries, keys and values of a head; 0 where there are none."""
    channels = _channels(q_ref.shape[-1], sizes)
    q = plgpu.load(q_ref.at[:, h, :], mask=kept, other=0.0)
    k, v = (plgpu.load(kv_ref.at[side, :, h, :], mask=channels, other=0.0) for side in SIDES)
    return q, k, v


def _norm(norm_ref, side: np.int32, h: Array, sizes: Sizes) -> Array:
    """Returns the LayerNorm's scale (side 0) or bias (side 1) of a head, as a row."""
    channels = _channels(norm_ref.shape[-1], sizes)[0]
    return plgpu.load(norm_ref.at[side, h, :], mask=channels, other=0.0)[None]


def _channels(width: int, sizes: Sizes) -> Array:
    """Returns which columns of a tile are channels, as a row; the others are padding."""
    return (jnp.arange(width) < sizes.head_dim)[None]


def _kept(block: Array, width: int, sizes: Sizes) -> Array:
    """Returns which entries of a tile of queries exist."""
    return (block * BLOCK + jnp.arange(BLOCK) < sizes.queries)[:, None] & _channels(width, sizes)


def _over_text(logits: Array, sizes: Sizes) -> Array:
    return softmax(logits, columns(logits, 0, sizes.text))


def _over_style(logits: Array, sizes: Sizes) -> Array:
    return softmax(logits, columns(logits, sizes.text, sizes.text + sizes.style))


def _total(x: Array) -> Array:
    return x.sum(-1, keepdims=True)


def _by_head(x: Array, sizes: Sizes) -> Array:
    return rearrange(x, "... (m e) -> ... m e", m=sizes.heads)


def _padded(sizes: Sizes) -> int:
    """Returns the columns of a head's tile, which Triton wants to be a power of two."""
    return pl.next_power_of_2(sizes.head_dim)


def _specs(kv: Array, sizes: Sizes) -> dict[str, pl.BlockSpec]:
    """Returns how blocks lie for programs of a batch row and a block of queries."""
    tile = (sizes.heads, _padded(sizes))
    return {
        "all": pl.BlockSpec(),
        "rows": pl.BlockSpec((None, BLOCK, *tile), lambda b, j: (b, j, 0, 0)),
        "keys": pl.BlockSpec((2, None, kv.shape[2], *tile), lambda b, j: (0, b, 0, 0, 0)),
        "norm": pl.BlockSpec((2, *tile), lambda b, j: (0, 0, 0)),
    }
