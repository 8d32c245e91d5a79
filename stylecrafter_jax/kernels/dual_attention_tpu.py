"""Dual cross-attention on TPU: forward and backward as one Mosaic kernel each.

A program holds a block of queries with all heads, and the keys and values of its batch row, text
and style side by side. One product with the keys serves both softmaxes, since on a matrix unit that
is 128 wide the style's few columns cost nothing beside the text's. The style branch of all heads
stays on chip until its LayerNorm is taken. Rows without a style skip all of it.

A loop runs over lanes, 128 channels at a time; masks tell apart the heads that share them.

The backward pass computes the forward's softmaxes again. Its sums over queries are kept on chip
over the blocks of one batch row.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from stylecrafter_jax.kernels.dual_attention_sizes import Sizes
from stylecrafter_jax.kernels.lanes import for_heads
from stylecrafter_jax.kernels.tiles import product, softmax_gradient

LARGEST_BLOCK = 512  # queries
FAST_BYTES = 11 * 2**20  # to plan with, of the 16 MiB that a program gets


def forward(
    q: Float[Array, "b n k"],
    kv: Float[Array, "2 b l k"],
    gain: Float[Array, " b"],
    norm: Float[Array, "2 k"],
    sizes: Sizes,
) -> Float[Array, "b n k"]:
    """Returns attention to text plus the gained, normed attention to style."""
    block, specs = _specs(q, kv, backward=False)
    return pl.pallas_call(
        functools.partial(_forward, sizes=sizes),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(q.shape[0], pl.cdiv(q.shape[1], block)),
        in_specs=[specs["gain"], specs["rows"], specs["kv"], specs["norm"]],
        out_specs=specs["rows"],
        scratch_shapes=[pltpu.VMEM((block, q.shape[2]), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=_cost(q, kv, sizes, products=4, copies=2),
        interpret=sizes.interpret,
        name="dual_attention",
    )(gain, q, kv, norm)


def _forward(gain_ref, q_ref, kv_ref, norm_ref, out_ref, text_ref, style_ref, *, sizes: Sizes):
    row = pl.program_id(0)
    styled = row < sizes.styled

    def attend(with_style: bool):
        def of_head(lanes, own):
            q, k, v = own(q_ref[0, :, lanes]), kv_ref[0, 0, :, lanes], kv_ref[1, 0, :, lanes]
            logits = product(q, k, "nt") * sizes.scale
            text_ref[:, lanes] += own(product(sizes.over_text(logits).astype(v.dtype), v))
            if with_style:
                style = product(sizes.over_style(logits).astype(v.dtype), v)
                style_ref[:, lanes] += own(style)

        text_ref[...] = jnp.zeros_like(text_ref)
        style_ref[...] = jnp.zeros_like(style_ref)
        for_heads(sizes.heads, sizes.head_dim, of_head)

    @pl.when(styled)
    def _():
        attend(True)
        normed, _ = _normalised(style_ref[...], sizes.epsilon)
        normed = normed * norm_ref[0:1] + norm_ref[1:2]
        out = text_ref[...] + gain_ref[row] * normed
        out_ref[0] = out.astype(out_ref.dtype)

    @pl.when(jnp.logical_not(styled))
    def _():
        attend(False)
        out_ref[0] = text_ref[...].astype(out_ref.dtype)


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
    `grad`; both 0 where a row has no style. The gradient of kv and the sums are float32.
    """
    block, specs = _specs(q, kv, backward=True)
    rows, width = q.shape[0], q.shape[2]
    sums = pl.BlockSpec((2, 1, 1, width), lambda i, j: (0, i, 0, 0))
    dq, dkv, total = pl.pallas_call(
        functools.partial(_backward, sizes=sizes),
        out_shape=(
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(kv.shape, jnp.float32),
            jax.ShapeDtypeStruct((2, rows, 1, width), jnp.float32),
        ),
        grid=(rows, pl.cdiv(q.shape[1], block)),
        in_specs=[specs["gain"], specs["rows"], specs["kv"], specs["norm"], specs["rows"]],
        out_specs=(specs["rows"], specs["kv"], sums),
        scratch_shapes=[pltpu.VMEM((block, width), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=_cost(q, kv, sizes, products=10, copies=3),
        interpret=sizes.interpret,
        name="dual_attention_backward",
    )(gain, q, kv, norm, grad)
    return dq, dkv, total[:, :, 0]


def _backward(
    gain_ref,
    q_ref,
    kv_ref,
    norm_ref,
    grad_ref,
    dq_ref,
    dkv_ref,
    sums_ref,
    style_ref,
    dstyle_ref,
    *,
    sizes: Sizes,
):
    row, block = pl.program_id(0), pl.program_id(1)
    styled = row < sizes.styled
    # Beyond the last query a block holds anything, NaN included: it must not enter the sums.
    first = block * q_ref.shape[1]
    inside = first + jax.lax.broadcasted_iota(jnp.int32, (q_ref.shape[1], 1), 0) < sizes.queries

    @pl.when(block == 0)
    def _():
        dkv_ref[...] = jnp.zeros_like(dkv_ref)
        sums_ref[...] = jnp.zeros_like(sums_ref)

    def rows(ref, lanes, own):
        x = ref[0, :, lanes]
        return own(jnp.where(inside, x, jnp.zeros_like(x)))

    def attend(with_style: bool):
        def of_head(lanes, own):
            k, v = kv_ref[0, 0, :, lanes], kv_ref[1, 0, :, lanes]
            q, grad = rows(q_ref, lanes, own), rows(grad_ref, lanes, own)
            logits = product(q, k, "nt") * sizes.scale
            weights = sizes.over_text(logits)
            dlogits = softmax_gradient(weights, product(grad, v, "nt"))
            dv = product(weights.astype(grad.dtype), grad, "tn")
            if with_style:
                weights = sizes.over_style(logits)
                dstyle = own(dstyle_ref[:, lanes]).astype(v.dtype)
                dlogits += softmax_gradient(weights, product(dstyle, v, "nt"))
                dv += product(weights.astype(dstyle.dtype), dstyle, "tn")
            dlogits = (dlogits * sizes.scale).astype(k.dtype)
            # The style branch is not needed any more: its place takes the gradient of q.
            style_ref[:, lanes] += own(product(dlogits, k))
            dkv_ref[0, 0, :, lanes] += product(dlogits, q, "tn")
            dkv_ref[1, 0, :, lanes] += dv

        style_ref[...] = jnp.zeros_like(style_ref)
        for_heads(sizes.heads, sizes.head_dim, of_head)
        dq_ref[0] = style_ref[...].astype(dq_ref.dtype)

    @pl.when(styled)
    def _():
        def of_head(lanes, own):
            k, v = kv_ref[0, 0, :, lanes], kv_ref[1, 0, :, lanes]
            logits = product(rows(q_ref, lanes, own), k, "nt") * sizes.scale
            style_ref[:, lanes] += own(product(sizes.over_style(logits).astype(v.dtype), v))

        style_ref[...] = jnp.zeros_like(style_ref)
        for_heads(sizes.heads, sizes.head_dim, of_head)
        normed, inverse = _normalised(style_ref[...], sizes.epsilon)
        grad = jnp.where(inside, grad_ref[0].astype(jnp.float32), 0.0)
        sums_ref[0, 0] += (grad * normed).sum(0, keepdims=True)
        sums_ref[1, 0] += grad.sum(0, keepdims=True)
        dnormed = gain_ref[row] * norm_ref[0:1] * grad
        dstyle = dnormed - dnormed.mean(-1, keepdims=True)
        dstyle -= normed * (dnormed * normed).mean(-1, keepdims=True)
        dstyle_ref[...] = inverse * dstyle
        attend(True)

    @pl.when(jnp.logical_not(styled))
    def _():
        attend(False)


def _normalised(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Returns rows of mean 0 and variance 1, and what they were divided by, inverted."""
    x = x - x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + epsilon)
    return x * inverse, inverse


def _specs(q: Array, kv: Array, *, backward: bool) -> tuple[int, dict[str, pl.BlockSpec]]:
    """Returns how many queries a block has, and how blocks lie.

    Args:
        q: queries.
        kv: keys and values.
        backward: the pass, which adds up gradients of keys and values, and holds more tiles.
    """
    width, columns, size = q.shape[2], kv.shape[2], q.dtype.itemsize
    # What comes and goes is held twice, since the next block is on its way.
    tiles = 3 if backward else 2
    fixed = 2 * 2 * columns * width * (size + (4 if backward else 0))
    each = width * (2 * tiles * size + 4 * (6 if backward else 3))
    block = min(LARGEST_BLOCK, max(16, (FAST_BYTES - fixed) // each // 16 * 16))
    block = q.shape[1] if q.shape[1] <= block else block
    return block, {
        "gain": pl.BlockSpec(memory_space=pltpu.SMEM),
        "rows": pl.BlockSpec((1, block, width), lambda i, j: (i, j, 0)),
        "kv": pl.BlockSpec((2, 1, columns, width), lambda i, j: (0, i, 0, 0)),
        "norm": pl.BlockSpec((2, width), lambda i, j: (0, 0)),
    }


def _cost(q: Array, kv: Array, sizes: Sizes, *, products: int, copies: int) -> pl.CostEstimate:
    """Returns what the compiler is told: the work of the formula, without padding."""
    rows, queries, width = q.shape
    text, style = rows * sizes.text, sizes.styled * sizes.style
    return pl.CostEstimate(
        flops=products * queries * width * (text + style),
        transcendentals=queries * sizes.heads * (text + style),
        bytes_accessed=copies * q.size * q.dtype.itemsize + kv.size * kv.dtype.itemsize,
    )
