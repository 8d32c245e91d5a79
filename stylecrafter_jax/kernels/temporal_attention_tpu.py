"""Attention over frames on TPU: forward and backward as one Mosaic kernel each.

128 tokens, such as 8 positions of 16 frames, make one product of queries and keys; what lies
between positions is masked. For the relative positions, a second product gives every query's logits
with all distances, u[t, d]. In a row t = 16 p + i the logit of frame j, distance d = j - i + 15,
belongs into column 16 p + j = d + t - 15: a rotation of every row by its own number, which the chip
has as one instruction. The way back, from columns to distances, is a rotation by the negative
number, which it has not: the rows are reversed, by a product with a permutation, before and after.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from stylecrafter_jax.kernels.lanes import LANES, for_heads, together
from stylecrafter_jax.kernels.temporal_attention_sizes import Sizes
from stylecrafter_jax.kernels.tiles import product, softmax_gradient

LARGEST_BLOCK = 8  # packs of 128 tokens
FAST_BYTES = 8 * 2**20  # to plan with, of the 16 MiB that a program gets


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
    tables = _over_lanes(tables, sizes)
    block, rows, whole = _specs(q, tables, 4)
    return pl.pallas_call(
        functools.partial(_forward, sizes=sizes),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(q.shape[0] // block,),
        in_specs=[rows, rows, rows, whole],
        out_specs=rows,
        scratch_shapes=[pltpu.VMEM((LANES, q.shape[1]), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        cost_estimate=_cost(q, sizes, products=8, copies=4),
        interpret=sizes.interpret,
        name="temporal_attention",
    )(q, k, v, tables)


def _forward(q_ref, k_ref, v_ref, tables_ref, out_ref, sum_ref, *, sizes: Sizes):
    def pack(number, _):
        rows = pl.ds(pl.multiple_of(number * LANES, LANES), LANES)

        def of_head(lanes, own):
            q, k, v = own(q_ref[rows, lanes]), k_ref[rows, lanes], v_ref[rows, lanes]
            table_k, table_v = _tables(tables_ref, q)
            weights = _weights(q, k, table_k, sizes)
            out = product(weights.astype(v.dtype), v)
            out += product(_by_distance(weights, v.dtype, sizes), table_v)
            sum_ref[:, lanes] += own(out)

        sum_ref[...] = jnp.zeros_like(sum_ref)
        for_heads(sizes.heads, sizes.head_dim, of_head)
        out_ref[rows, :] = sum_ref[...].astype(out_ref.dtype)
        return 0

    jax.lax.fori_loop(0, q_ref.shape[0] // LANES, pack, 0)


def backward(
    q: Float[Array, "t k"],
    k: Float[Array, "t k"],
    v: Float[Array, "t k"],
    tables: Float[Array, "2 d e"],
    grad: Float[Array, "t k"],
    sizes: Sizes,
) -> tuple[Array, Array, Array, Array]:
    """Returns the gradients of q, k, v and, in float32, of the tables."""
    wide = _over_lanes(tables, sizes)
    block, rows, whole = _specs(q, wide, 7)
    scratch = pltpu.VMEM((LANES, q.shape[1]), jnp.float32)
    dq, dk, dv, dtables = pl.pallas_call(
        functools.partial(_backward, sizes=sizes),
        out_shape=(
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)),
            jax.ShapeDtypeStruct(wide.shape, jnp.float32),
        ),
        grid=(q.shape[0] // block,),
        in_specs=[rows, rows, rows, whole, rows],
        out_specs=(rows, rows, rows, whole),
        scratch_shapes=[scratch] * 3,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=_cost(q, sizes, products=20, copies=7),
        interpret=sizes.interpret,
        name="temporal_attention_backward",
    )(q, k, v, wide, grad)
    # Every copy of the tables that lies in the lanes has the gradient of other heads.
    dtables = rearrange(dtables[:, : tables.shape[1]], "s d (n e) -> n s d e", e=tables.shape[2])
    return dq, dk, dv, dtables.sum(0)


def _backward(
    q_ref,
    k_ref,
    v_ref,
    tables_ref,
    grad_ref,
    dq_ref,
    dk_ref,
    dv_ref,
    dtables_ref,
    *sums,
    sizes: Sizes,
):
    @pl.when(pl.program_id(0) == 0)
    def _():
        dtables_ref[...] = jnp.zeros_like(dtables_ref)

    def pack(number, _):
        rows = pl.ds(pl.multiple_of(number * LANES, LANES), LANES)

        def of_head(lanes, own):
            q, k, v = own(q_ref[rows, lanes]), k_ref[rows, lanes], v_ref[rows, lanes]
            grad = own(grad_ref[rows, lanes])
            table_k, table_v = _tables(tables_ref, q)
            weights = _weights(q, k, table_k, sizes)
            dweights = product(grad, v, "nt") + _to_columns(product(grad, table_v, "nt"), sizes)
            dlogits = softmax_gradient(weights, dweights) * sizes.scale
            weights_d = _by_distance(weights, v.dtype, sizes)
            dlogits_d = _by_distance(dlogits, k.dtype, sizes)
            weights, dlogits = weights.astype(v.dtype), dlogits.astype(k.dtype)
            dq = product(dlogits, k) + product(dlogits_d, table_k)
            tiles = (dq, product(dlogits, q, "tn"), product(weights, grad, "tn"))
            for ref, tile in zip(sums, tiles, strict=True):
                ref[:, lanes] += own(tile)
            width = q.shape[1]
            dtables_ref[0, :, :width] += product(dlogits_d, q, "tn")
            dtables_ref[1, :, :width] += product(weights_d, grad, "tn")

        for ref in sums:
            ref[...] = jnp.zeros_like(ref)
        for_heads(sizes.heads, sizes.head_dim, of_head)
        for ref, tile in zip((dq_ref, dk_ref, dv_ref), sums, strict=True):
            ref[rows, :] = tile[...].astype(ref.dtype)
        return 0

    jax.lax.fori_loop(0, q_ref.shape[0] // LANES, pack, 0)


def _weights(q: Array, k: Array, table_k: Array, sizes: Sizes) -> Array:
    """Returns the attention of a pack's tokens to each other."""
    logits = product(q, k, "nt") + _to_columns(product(q, table_k, "nt"), sizes)
    return sizes.attended(logits)


def _to_columns(by_distance: Array, sizes: Sizes) -> Array:
    """Returns values of distances in the columns of the tokens that lie there.

    Columns of other positions get anything.
    """
    return _rotated(by_distance, LANES - (sizes.padded - 1), sizes)


def _by_distance(x: Array, dtype, sizes: Sizes) -> Array:
    """Returns a pack's matrix with its entries in the columns of their distances, as `dtype`."""
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    reverse = (row + column == LANES - 1).astype(dtype)
    turned = product(reverse, x.astype(dtype))
    turned = _rotated(turned, sizes.padded, sizes)
    return product(reverse, turned.astype(dtype)).astype(dtype)


def _rotated(x: Array, shift: int, sizes: Sizes) -> Array:
    """Returns a pack's matrix with every row t rotated to the right by shift + t columns."""
    if not sizes.interpret:
        return pltpu.roll(x, shift, 1, stride=1, stride_axis=0)
    # Interpreted, the instruction is 128 rotations, which take long to compile.
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.take_along_axis(x, (column - shift - row) % LANES, axis=1)


def _tables(tables_ref, like: Array) -> tuple[Array, Array]:
    """Returns the tables over the lanes of a tile."""
    width = like.shape[1]
    return tables_ref[0, :, :width], tables_ref[1, :, :width]


def _over_lanes(tables: Array, sizes: Sizes) -> Array:
    """Returns tables with 128 rows, and a copy for every head that lanes are shared by."""
    width = together(sizes.heads, sizes.head_dim) or sizes.head_dim
    rows = ((0, 0), (0, LANES - tables.shape[1]), (0, 0))
    return jnp.tile(jnp.pad(tables, rows), (1, 1, width // sizes.head_dim))


def _specs(q: Array, tables: Array, tiles: int) -> tuple[int, pl.BlockSpec, pl.BlockSpec]:
    """Returns the tokens of a block, and how blocks lie; `tiles` of them are held, twice."""
    tokens, width = q.shape
    packs, each = tokens // LANES, 2 * tiles * LANES * width * q.dtype.itemsize
    most = max(1, min(LARGEST_BLOCK, FAST_BYTES // each))
    block = LANES * max(n for n in range(1, most + 1) if packs % n == 0)
    rows = pl.BlockSpec((block, width), lambda i: (i, 0))
    return block, rows, pl.BlockSpec(tables.shape, lambda i: (0, 0, 0))


def _cost(q: Array, sizes: Sizes, *, products: int, copies: int) -> pl.CostEstimate:
    """Returns what the compiler is told: the work of the formula, without padding."""
    tokens, width = q.shape
    return pl.CostEstimate(
        flops=products * tokens * sizes.frames * width,
        transcendentals=tokens * sizes.frames * sizes.heads,
        bytes_accessed=copies * q.size * q.dtype.itemsize,
    )
