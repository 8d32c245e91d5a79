"""Dual cross-attention: to text, plus a gained and normed branch to style tokens.

With queries q, keys and values of text (k, v) and of style (k', v'), for every head of width e

    A  = softmax(q k^T / sqrt(e)) v
    A' = softmax(q k'^T / sqrt(e)) v'
    out = A + gain * LayerNorm(A')

The LayerNorm runs over all heads of a query together. Leading rows of the batch have a style, the
others get A alone. The queries of all frames of a video share its keys and values.

`reference` is the formula, `xla` leaves it to XLA, `pallas` makes one kernel of it that never holds
logits outside the chip; its backward pass computes the softmaxes again.

Source: StyleCrafter (arXiv 2312.00330), eq. 1; its lvdm/modules/attention.py,
DualCrossAttnProcessorAS.efficient_forward.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from stylecrafter_jax.kernels import dual_attention_gpu, dual_attention_tpu
from stylecrafter_jax.kernels.dispatch import (
    Implementation,
    body_platform,
    chosen,
    fastest,
    not_covered,
    target,
    width_of_head,
)
from stylecrafter_jax.kernels.dual_attention_sizes import Sizes
from stylecrafter_jax.kernels.lanes import LANES
from stylecrafter_jax.kernels.self_attention import attention
from stylecrafter_jax.kernels.sharded import (
    devices_of_rows,
    devices_of_videos,
    over_rows,
    split_heads,
    uneven,
)

EPSILON = 1e-5
TOKENS = 1024  # of text and style together: keys and values stay on chip
BODIES = {"tpu": dual_attention_tpu, "gpu": dual_attention_gpu}


def dual_attention(
    q: Float[Array, "b n k"],
    text_k: Float[Array, "b l k"],
    text_v: Float[Array, "b l k"],
    style_k: Float[Array, "r s k"],
    style_v: Float[Array, "r s k"],
    gain: Float[Array, " r"],
    norm_scale: Float[Array, " k"],
    norm_bias: Float[Array, " k"],
    *,
    heads: int,
    queries: bool = True,
    impl: Implementation | None = None,
) -> Float[Array, "b n k"]:
    """Returns `out` of the formula above, in the type of `q`.

    Args:
        q: queries, with merged heads.
        text_k: keys of the text.
        text_v: values of the text.
        style_k: keys of the style of the leading rows.
        style_v: values of the style.
        gain: factor on the style branch.
        norm_scale: of the LayerNorm.
        norm_bias: of the LayerNorm.
        heads: how many there are.
        queries: `q` holds those of all frames, one frame after the other, which several devices may
            split; otherwise each row is a picture.
        impl: None takes the fastest that covers the arguments where the program will run.

    Raises:
        NotImplementedError: `impl` does not cover the arguments.
        ValueError: more rows have a style than there are, or the heads do not divide the width.
    """
    rows, styled = q.shape[0], style_k.shape[0]
    if styled > rows:
        raise ValueError(f"{styled} rows have a style, but there are {rows}")
    missing = not_covered(q.dtype, width_of_head(q.shape[2], heads))
    tokens = text_k.shape[1] + style_k.shape[1]
    if tokens > TOKENS:
        missing = missing or f"{tokens} tokens"
    if not styled:
        missing = missing or "a batch without a style"
    missing = missing or uneven(rows, q.shape[1] if queries else None) or split_heads()
    taken = chosen(impl, fastest=fastest(), missing=missing)
    style, norm = (style_k, style_v, gain), (norm_scale, norm_bias)
    if taken == "pallas":
        devices = devices_of_videos() if queries else devices_of_rows()
        if devices > 1:  # which rows of a device have a style is not known to it
            style = _of_all_rows(rows, *style)
        kernel = functools.partial(fused, heads=heads, platform=body_platform())
        return over_rows(kernel, (q, text_k, text_v, *style), norm, queries=queries)
    run = reference if taken == "reference" else functools.partial(xla, queries=queries)
    return run(q, text_k, text_v, *style, *norm, heads=heads)


def _of_all_rows(rows: int, *arrays: Array) -> tuple[Array, ...]:
    """Returns what the leading rows have for all rows; a gain of zero makes the style nothing."""
    return tuple(jnp.pad(x, [(0, rows - len(x)), *[(0, 0)] * (x.ndim - 1)]) for x in arrays)


def reference(
    q, text_k, text_v, style_k, style_v, gain, norm_scale, norm_bias, *, heads: int
) -> Float[Array, "b n k"]:
    """The formula; everything in float32 or, if the arguments are, float64."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    arrays = (q, text_k, text_v, style_k, style_v, gain, norm_scale, norm_bias)
    queries, k, v, k_style, v_style, gain, scale, bias = (x.astype(dtype) for x in arrays)

    def attend(q, k, v):
        q, k, v = (rearrange(x, "b n (m e) -> b m n e", m=heads) for x in (q, k, v))
        logits = jnp.einsum("bmne,bmle->bmnl", q, k) / jnp.sqrt(jnp.asarray(q.shape[-1], dtype))
        out = jnp.einsum("bmnl,bmle->bmne", jax.nn.softmax(logits), v)
        return rearrange(out, "b m n e -> b n (m e)")

    styled = attend(queries[: len(k_style)], k_style, v_style)
    mean, variance = styled.mean(-1, keepdims=True), styled.var(-1, keepdims=True)
    normed = (styled - mean) / jnp.sqrt(variance + EPSILON) * scale[None, None] + bias[None, None]
    out = attend(queries, k, v).at[: len(k_style)].add(gain[:, None, None] * normed)
    return out.astype(q.dtype)


def xla(
    q,
    text_k,
    text_v,
    style_k,
    style_v,
    gain,
    norm_scale,
    norm_bias,
    *,
    heads: int,
    queries: bool = True,
) -> Float[Array, "b n k"]:
    """Two attentions in the type of `q`; LayerNorm and sum in float32."""

    def attend(q, k, v):
        q, k, v = (rearrange(x, "b n (m e) -> b n m e", m=heads) for x in (q, k, v))
        return rearrange(attention(q, k, v, queries=queries), "b n m e -> b n (m e)")

    styled = style_k.shape[0]
    text = attend(q, text_k, text_v)
    style = attend(q[:styled], style_k, style_v).astype(jnp.float32)
    centred = style - style.mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)
    normed = gain[:, None, None] * (normed * norm_scale[None, None] + norm_bias[None, None])
    added = (text[:styled].astype(jnp.float32) + normed).astype(q.dtype)
    return added if styled == q.shape[0] else jnp.concatenate([added, text[styled:]])


def fused(
    q,
    text_k,
    text_v,
    style_k,
    style_v,
    gain,
    norm_scale,
    norm_bias,
    *,
    heads: int,
    platform: str,
) -> Float[Array, "b n k"]:
    """The kernel of a platform, `tpu` or `gpu`; interpreted where the program is for neither."""
    rows, styled = q.shape[0], style_k.shape[0]
    sizes = Sizes(
        heads=heads,
        head_dim=q.shape[2] // heads,
        text=text_k.shape[1],
        style=style_k.shape[1],
        styled=styled,
        queries=q.shape[1],
        epsilon=EPSILON,
        interpret=target() != platform,
    )
    tokens = max(LANES, pl.next_power_of_2(sizes.text + sizes.style))
    style_k, style_v, gain = _of_all_rows(rows, style_k, style_v, gain.astype(jnp.float32))
    kv = jnp.stack([jnp.concatenate(own, axis=1) for own in ((text_k, style_k), (text_v, style_v))])
    kv = jnp.pad(kv, ((0, 0), (0, 0), (0, tokens - kv.shape[2]), (0, 0)))
    norm = jnp.stack([norm_scale, norm_bias]).astype(jnp.float32)
    return _fused(q, kv.astype(q.dtype), gain, norm, sizes, platform)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _fused(q, kv, gain, norm, sizes: Sizes, platform: str):
    return BODIES[platform].forward(q, kv, gain, norm, sizes)


def _fused_forward(q, kv, gain, norm, sizes: Sizes, platform: str):
    return _fused(q, kv, gain, norm, sizes, platform), (q, kv, gain, norm)


def _fused_backward(sizes: Sizes, platform: str, saved, grad):
    q, kv, gain, norm = saved
    body = BODIES[platform]
    dq, dkv, sums = body.backward(q, kv, gain, norm, grad, sizes)
    dgain = jnp.einsum("xbk,xk->b", sums, norm)
    dnorm = jnp.einsum("xbk,b->xk", sums, gain)
    return dq, dkv.astype(kv.dtype), dgain, dnorm


_fused.defvjp(_fused_forward, _fused_backward)
