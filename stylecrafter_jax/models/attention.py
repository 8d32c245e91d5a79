"""Attention layers: self-attention, text plus gated style cross-attention, over frames."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from stylecrafter_jax.kernels.dispatch import Implementation
from stylecrafter_jax.kernels.dual_attention import dual_attention
from stylecrafter_jax.kernels.self_attention import attention
from stylecrafter_jax.kernels.sharded import are_own_pictures, over_frames
from stylecrafter_jax.kernels.temporal_attention import relative_attention, temporal_attention
from stylecrafter_jax.models.layers import tiled


class SelfAttention(nn.Module, kw_only=True):
    """Self-attention over the tokens of one frame; no positions, no mask."""

    heads: int
    head_dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b f n c"]) -> Float[Array, "b f n c"]:
        def project(name):
            inner = self.heads * self.head_dim
            return nn.Dense(inner, use_bias=False, dtype=self.dtype, name=name)(x)

        def attend(qkv):
            rows = (rearrange(y, "b f n (m e) -> (b f) n m e", e=self.head_dim) for y in qkv)
            return rearrange(attention(*rows), "(b f) n m e -> b f n (m e)", b=len(qkv[0]))

        qkv = (project("to_q"), project("to_k"), project("to_v"))
        out = over_frames(attend, qkv, heads=self.heads)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="to_out.0")(out)


class TemporalAttention(nn.Module, kw_only=True):
    """Attention over the frames of one position; to the frames themselves or to `context`.

    `relative` is the extent of the relative-position tables, or None for plain attention.
    """

    heads: int
    head_dim: int
    relative: int | None
    dtype: DTypeLike
    impl: Implementation | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n f c"],
        context: Float[Array, "b n l d"] | None = None,
        mask: Bool[Array, "#b #n f l"] | None = None,
    ) -> Float[Array, "b n f c"]:
        def project(tokens, name):
            inner = self.heads * self.head_dim
            return nn.Dense(inner, use_bias=False, dtype=self.dtype, name=name)(tokens)

        source = x if context is None else context
        arrays = [project(x, "to_q"), project(source, "to_k"), project(source, "to_v")]
        tables = ()
        if self.relative is not None:
            shape = (2 * self.relative + 1, self.head_dim)
            init = nn.initializers.xavier_uniform()
            tables = tuple(
                _Table(shape=shape, init=init, name=f"relative_position_{side}")() for side in "kv"
            )
        if mask is not None:
            arrays.append(jnp.broadcast_to(mask, (*x.shape[:2], *mask.shape[2:])))
        attend = functools.partial(self.attend, alone=context is None)
        if are_own_pictures(len(x), x.shape[2]):  # whose positions are not split
            out = attend(arrays, *tables)
        else:
            out = over_frames(attend, arrays, *tables, heads=self.heads if mask is None else None)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="to_out.0")(out)

    def attend(self, arrays: Sequence[Array], *tables: Array, alone: bool) -> Array:
        """Returns the attention of queries to keys and values, with a mask as a fourth array."""
        q, k, v, *masks = (rearrange(y, "b n ... -> (b n) ...") for y in arrays)
        if tables and alone and not masks:
            heads = q.shape[-1] // self.head_dim
            out = temporal_attention(q, k, v, *tables, heads=heads, impl=self.impl)
        else:
            own = [rearrange(y, "r f (m e) -> r f m e", e=self.head_dim) for y in (q, k, v)]
            mask = masks[0] if masks else None
            attend = functools.partial(relative_attention if tables else attention, mask=mask)
            out = attend(*own, *tables)
            out = rearrange(out, "r f m e -> r f (m e)")
        return rearrange(out, "(b n) f c -> b n f c", b=len(arrays[0]))


class _Table(nn.Module, kw_only=True):
    """One table of relative-position embeddings, under the original's name."""

    shape: tuple[int, int]
    init: Any

    @nn.compact
    def __call__(self) -> Float[Array, "r e"]:
        return jnp.asarray(self.param("embeddings_table", self.init, self.shape))


class ContextKV(NamedTuple):
    """Keys and values of one dual cross-attention, heads merged; style covers the leading rows."""

    k: Float[Array, "b l k"]
    v: Float[Array, "b l k"]
    k_style: Float[Array, "r s k"] | None = None
    v_style: Float[Array, "r s k"] | None = None


def context_kv(
    params: Mapping[str, Any],
    name: str,
    text: Float[Array, "b l d"],
    style: Float[Array, "r s d"] | None,
) -> ContextKV:
    """Returns what `DualCrossAttention` would compute from its contexts, to be computed once.

    Args:
        params: flat UNet parameters.
        name: the layer's name in them.
        text: text tokens of every row, in the compute dtype.
        style: style tokens of the leading rows.
    """

    def project(tokens, leaf):
        kernel = params.get(f"{name}/{leaf}/kernel")
        if kernel is None:  # the "attach" fusion has no kernels of its own for the style
            kernel = params[f"{name}/{leaf.removesuffix('_style')}/kernel"]
        return tokens @ kernel.astype(tokens.dtype)

    kv = ContextKV(project(text, "to_k"), project(text, "to_v"))
    if style is None:
        return kv
    return kv._replace(k_style=project(style, "to_k_style"), v_style=project(style, "to_v_style"))


class DualCrossAttention(nn.Module, kw_only=True):
    """Cross-attention to text plus a scaled branch to style tokens; one query serves both.

        out = to_out(attn(q, text) + scale * norm_style(attn(q, style)))

    See `kernels.dual_attention`. Rows of `x` serve as many rows of text as there are, one batch
    after the other. The style may cover only the first r of the b rows; the rest is
    attended to text alone. `fusion="attach"` appends the style tokens to the text tokens instead.
    `use_norm=False` rescales the style branch to the L2 norm of the text branch, frame by frame,
    instead of LayerNorm.

    Source: StyleCrafter, lvdm/modules/attention.py, DualCrossAttnProcessorAS.efficient_forward.
    """

    heads: int
    head_dim: int
    fusion: Literal["dual", "attach"]
    use_norm: bool
    dtype: DTypeLike
    impl: Implementation | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f n c"],
        text: Float[Array, "a l d"],
        style: Float[Array, "r s d"] | None = None,
        scale: Float[Array, " r"] | None = None,
        kv: ContextKV | None = None,
    ) -> Float[Array, "a f n c"]:
        def dense(name):
            inner = self.heads * self.head_dim
            return nn.Dense(inner, use_bias=False, dtype=self.dtype, name=name)

        def attend(rows, k, v):
            frames = rows.shape[1]
            q = rearrange(rows, "b f n (m e) -> b (f n) m e", m=self.heads)
            k, v = (rearrange(y, "b l (m e) -> b l m e", m=self.heads) for y in (k, v))
            out = attention(q, k, v, queries=not are_own_pictures(len(rows), frames))
            return rearrange(out, "b (f n) m e -> b f n (m e)", f=frames)

        q = tiled(dense("to_q")(x), text.shape[0])
        if kv is None:
            to_k, to_v = dense("to_k"), dense("to_v")
            kv = ContextKV(to_k(text), to_v(text))
            if style is not None:
                if self.fusion == "dual":
                    to_k, to_v = dense("to_k_style"), dense("to_v_style")
                kv = kv._replace(k_style=to_k(style), v_style=to_v(style))
        k, v, k_style, v_style = kv
        if k_style is None or v_style is None:
            out = attend(q, k, v)
        elif self.fusion == "attach":
            r = k_style.shape[0]
            k_both, v_both = (
                jnp.concatenate([k[:r], k_style], 1),
                jnp.concatenate([v[:r], v_style], 1),
            )
            out = attend(q[:r], k_both, v_both)
            if r < q.shape[0]:
                out = jnp.concatenate([out, attend(q[r:], k[r:], v[r:])], axis=0)
        elif self.use_norm:
            r, frames = k_style.shape[0], q.shape[1]
            gain = jnp.ones((r,), jnp.float32) if scale is None else scale
            norm = _NormWeights(width=q.shape[-1], name="norm_style")()
            flat = rearrange(q, "b f n k -> b (f n) k")
            out = dual_attention(
                *(flat, k, v, k_style, v_style, gain, *norm),
                heads=self.heads,
                queries=not are_own_pictures(len(q), frames),
                impl=self.impl,
            )
            out = rearrange(out, "b (f n) k -> b f n k", f=frames)
        else:
            r = k_style.shape[0]
            out = attend(q, k, v)
            styled = self.rescaled(attend(q[:r], k_style, v_style), out[:r])
            if scale is not None:
                styled = rearrange(scale, "r -> r 1 1 1").astype(self.dtype) * styled
            out = jnp.concatenate([out[:r] + styled, out[r:]], axis=0)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="to_out.0")(out)

    def rescaled(
        self, styled: Float[Array, "r f n k"], text: Float[Array, "r f n k"]
    ) -> Float[Array, "r f n k"]:
        """Returns the style branch with the text branch's norm per frame."""
        text_norm, style_norm = (
            jnp.sqrt(jnp.square(y.astype(jnp.float32)).sum((-2, -1), keepdims=True))
            for y in (text, styled)
        )
        ratio = jax.lax.stop_gradient(text_norm / (style_norm + 1e-6))
        return (ratio * styled).astype(self.dtype)


class _NormWeights(nn.Module, kw_only=True):
    """Scale and bias of a LayerNorm, which a kernel takes."""

    width: int

    @nn.compact
    def __call__(self) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        scale = self.param("scale", nn.initializers.ones, (self.width,))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return jnp.asarray(scale), jnp.asarray(bias)
