"""Attention over the frames of one position, with learned relative positions of keys and values.

With d(i, j) = clip(j - i, -L, L) + L and tables of 2 L + 1 rows, for every head of width e

    logits[i, j] = q_i . (k_j + table_k[d(i, j)]) / sqrt(e)
    out[i] = sum_j softmax(logits)[i, j] (v_j + table_v[d(i, j)])

There are few frames and millions of positions: alone, one of them would fill a matrix unit to a
hundredth. The kernels put as many as fit side by side and mask what lies between them.

`reference` is the formula, `xla` leaves it to XLA, `pallas` makes one kernel of it; its backward
pass computes the softmaxes again.

Source: StyleCrafter, lvdm/modules/attention.py, CrossAttention with relative_position.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from stylecrafter_jax.kernels import temporal_attention_gpu, temporal_attention_tpu
from stylecrafter_jax.kernels.cache import in_parts
from stylecrafter_jax.kernels.dispatch import (
    Implementation,
    body_platform,
    chosen,
    fastest,
    multiplied,
    not_covered,
    target,
    width_of_head,
)
from stylecrafter_jax.kernels.lanes import LANES
from stylecrafter_jax.kernels.sharded import heads_of_a_device, over_rows, split_heads, uneven
from stylecrafter_jax.kernels.temporal_attention_sizes import Sizes

FRAMES = 64
FEWEST = 8  # tokens of a position: Mosaic turns no tile of eight rows past its last lane
BODIES = {"tpu": temporal_attention_tpu, "gpu": temporal_attention_gpu}


def temporal_attention(
    q: Float[Array, "r f k"],
    k: Float[Array, "r f k"],
    v: Float[Array, "r f k"],
    table_k: Float[Array, "d e"],
    table_v: Float[Array, "d e"],
    *,
    heads: int,
    impl: Implementation | None = None,
) -> Float[Array, "r f k"]:
    """Returns `out` of the formula above, in the type of `q`.

    Args:
        q: queries, with merged heads; a row is a position, the frames are its tokens.
        k: keys.
        v: values.
        table_k: relative positions of keys, shared by the heads.
        table_v: relative positions of values.
        heads: how many there are.
        impl: None takes the fastest that covers the arguments where the program will run.

    Raises:
        NotImplementedError: `impl` does not cover the arguments.
        ValueError: the heads do not divide the width.
    """
    missing = not_covered(q.dtype, width_of_head(q.shape[2], heads))
    if q.shape[1] > FRAMES:
        missing = missing or f"{q.shape[1]} frames"
    missing = missing or uneven(q.shape[0]) or split_heads(heads)
    taken = chosen(impl, fastest=fastest(), missing=missing)
    by_row, tables = (q, k, v), (table_k, table_v)
    if taken == "pallas":
        own = heads_of_a_device(heads)
        kernel = functools.partial(fused, heads=own, platform=body_platform())
        return over_rows(kernel, by_row, tables, heads=heads)
    return (reference if taken == "reference" else xla)(*by_row, *tables, heads=heads)


def reference(q, k, v, table_k, table_v, *, heads: int) -> Float[Array, "r f k"]:
    """The formula; everything in float32 or, if the arguments are, float64."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    arrays = (x.astype(dtype) for x in (q, k, v))
    queries, k, v = (rearrange(x, "r f (m e) -> r m f e", m=heads) for x in arrays)
    frames, extent = q.shape[1], len(table_k) // 2
    i, j = jnp.arange(frames)[:, None], jnp.arange(frames)[None]
    d = jnp.clip(j - i, -extent, extent) + extent
    near_k, near_v = (table.astype(dtype)[d] for table in (table_k, table_v))
    logits = jnp.einsum("rmie,rmje->rmij", queries, k)
    logits += jnp.einsum("rmie,ije->rmij", queries, near_k)
    logits /= jnp.sqrt(jnp.asarray(k.shape[-1], dtype))
    weights = jax.nn.softmax(logits)
    out = jnp.einsum("rmij,rmje->rmie", weights, v)
    out += jnp.einsum("rmij,ije->rmie", weights, near_v)
    return rearrange(out, "r m f e -> r f (m e)").astype(q.dtype)


def xla(q, k, v, table_k, table_v, *, heads: int) -> Float[Array, "r f k"]:
    """Products in the type of `q`, logits and softmax in float32."""

    def attend(q, k, v):
        q, k, v = (rearrange(x, "r f (m e) -> r f m e", m=heads) for x in (q, k, v))
        out = relative_attention(q, k, v, table_k, table_v)
        return rearrange(out, "r f m e -> r f (m e)")

    return in_parts(attend, 4 * 4 * q[0].size, q, k, v)  # with the result, in float32


def relative_attention(
    q: Float[Array, "b n m e"],
    k: Float[Array, "b l m e"],
    v: Float[Array, "b l m e"],
    table_k: Float[Array, "d e"],
    table_v: Float[Array, "d e"],
    mask: Bool[Array, "#b n l"] | None = None,
) -> Float[Array, "b n m e"]:
    """The formula for any number of keys and any mask, True where attended."""
    n, length, dtype = q.shape[1], k.shape[1], q.dtype
    q, k, v = (x.astype(multiplied(dtype)) for x in (q, k, v))
    extent = table_k.shape[0] // 2
    offset = jnp.arange(length)[None, :] - jnp.arange(n)[:, None]
    index = jnp.clip(offset, -extent, extent) + extent
    float32 = {"preferred_element_type": jnp.float32}
    logits = jnp.einsum("bnme,blme->bmnl", q, k, **float32)
    logits += jnp.einsum(
        "bnme,nle->bmnl", q, jnp.take(table_k.astype(q.dtype), index, axis=0), **float32
    )
    logits *= q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bmnl,blme->bnme", weights, v, **float32)
    out += jnp.einsum(
        "bmnl,nle->bnme", weights, jnp.take(table_v.astype(v.dtype), index, axis=0), **float32
    )
    return out.astype(dtype)


def fused(q, k, v, table_k, table_v, *, heads: int, platform: str) -> Float[Array, "r f k"]:
    """The kernel of a platform, `tpu` or `gpu`; interpreted where the program is for neither."""
    rows, frames, width = q.shape
    padded = max(FEWEST, pl.next_power_of_2(frames))
    sizes = Sizes(
        heads=heads,
        head_dim=width // heads,
        frames=frames,
        padded=padded,
        interpret=target() != platform,
    )
    # Whole packs of tokens: what is added attends to itself and is cut off again.
    positions = LANES // padded
    extra = -rows % positions
    padding = ((0, extra), (0, padded - frames), (0, 0))
    q, k, v = (rearrange(jnp.pad(x, padding), "r f k -> (r f) k") for x in (q, k, v))
    extent = len(table_k) // 2
    distance = jnp.clip(jnp.arange(1 - padded, padded), -extent, extent) + extent
    tables = jnp.stack([table_k[distance], table_v[distance]]).astype(q.dtype)
    out: Array = _fused(q, k, v, tables, sizes, platform)
    return rearrange(out, "(r f) k -> r f k", f=padded)[:rows, :frames]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _fused(q, k, v, tables, sizes: Sizes, platform: str):
    return BODIES[platform].forward(q, k, v, tables, sizes)


def _fused_forward(q, k, v, tables, sizes: Sizes, platform: str):
    return _fused(q, k, v, tables, sizes, platform), (q, k, v, tables)


def _fused_backward(sizes: Sizes, platform: str, saved, grad):
    q, k, v, tables = saved
    body = BODIES[platform]
    *grads, dtables = body.backward(q, k, v, tables, grad, sizes)
    return *grads, dtables.astype(tables.dtype)


_fused.defvjp(_fused_forward, _fused_backward)
