"""Transformers of the video UNet: over the positions of a frame, and over the frames."""

import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from stylecrafter_jax.kernels.cache import in_parts, parts
from stylecrafter_jax.kernels.dispatch import Implementation
from stylecrafter_jax.kernels.sharded import over_positions, own_channels, split_heads
from stylecrafter_jax.models.attention import (
    ContextKV,
    DualCrossAttention,
    SelfAttention,
    TemporalAttention,
)
from stylecrafter_jax.models.layers import (
    JOINT,
    NORM_GROUPS,
    TRANSFORMER_EPSILON,
    GroupNorm,
    tiled,
)


class LayerNorm(nn.LayerNorm):
    """LayerNorm with PyTorch's epsilon and exact float32 statistics."""

    epsilon: float = 1e-5
    use_fast_variance: bool = False
    dtype: DTypeLike | None = jnp.float32


class GEGLU(nn.Module, kw_only=True):
    """Feed-forward: (first half of the projection) * gelu(second half), projected back.

    Source: StyleCrafter, lvdm/modules/attention.py, FeedForward with glu.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        c = x.shape[-1]
        layers = (
            _Halves(features=8 * c, dtype=self.dtype, name="net.0.proj"),
            nn.Dense(c, dtype=self.dtype, name="net.2"),
        )

        def feed(layers, rows):
            first, last = layers
            hidden, gate = first(rows)
            return last(hidden * nn.gelu(gate, approximate=False))

        if parts(x.size // c, 4 * 8 * c) == 1 or self.is_initializing():
            return feed(layers, x)
        # Linen's modules may not be called in a loop, functions of their weights may.
        layers = [functools.partial(y.clone(parent=None).apply, y.variables) for y in layers]
        rows = rearrange(x, "... c -> (...) c")
        return in_parts(functools.partial(feed, layers), 4 * 8 * c, rows).reshape(x.shape)


class _Halves(nn.Module, kw_only=True):
    """A dense layer whose outputs are two halves.

    Where devices share the channels each makes its own of both halves, by a product for each: as
    one product's, they would lie side by side on other devices.
    """

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Sequence[Float[Array, "*batch k"]]:
        size = (x.shape[-1], self.features)
        kernel = jnp.asarray(self.param("kernel", nn.initializers.lecun_normal(), size))
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, size[1:]))
        x, kernel, bias = (y.astype(self.dtype) for y in (x, kernel, bias))

        def product(kernel, bias):
            return x @ kernel + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))

        if split_heads() is None:
            return jnp.split(product(kernel, bias), 2, axis=-1)
        kernel = own_channels(rearrange(kernel, "c (p k) -> p c k", p=2))
        bias = own_channels(rearrange(bias, "(p k) -> p k", p=2))
        return [product(*half) for half in zip(kernel, bias, strict=True)]


class SpatialBlock(nn.Module, kw_only=True):
    """Self-attention within a frame, dual cross-attention, feed-forward; each pre-normed."""

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
        style: Float[Array, "r s d"] | None,
        scale: Float[Array, " r"] | None,
        kv: ContextKV | None,
    ) -> Float[Array, "a f n c"]:
        size = {"heads": self.heads, "head_dim": self.head_dim, "dtype": self.dtype}
        h = LayerNorm(name="norm1")(x).astype(self.dtype)
        x = x + SelfAttention(**size, name="attn1")(h)
        h = LayerNorm(name="norm2")(x).astype(self.dtype)
        attn2 = DualCrossAttention(
            **size, fusion=self.fusion, use_norm=self.use_norm, impl=self.impl, name="attn2"
        )
        x = tiled(x, text.shape[0]) + attn2(h, text, style, scale, kv)
        return x + GEGLU(dtype=self.dtype, name="ff")(LayerNorm(name="norm3")(x).astype(self.dtype))


class SpatialTransformer(nn.Module, kw_only=True):
    """Transformer over the positions of each frame, with text and style.

    `layer` is the index of its first dual cross-attention among those of the whole UNet: it picks
    the column of `scale` and the entry of `kv`.

    Source: StyleCrafter, lvdm/modules/attention.py, SpatialTransformer.
    """

    heads: int
    head_dim: int
    depth: int
    use_linear: bool
    layer: int
    fusion: Literal["dual", "attach"]
    use_norm: bool
    norm_groups: int = NORM_GROUPS
    dtype: DTypeLike
    impl: Implementation | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        text: Float[Array, "a l d"],
        style: Float[Array, "r s d"] | None = None,
        scale: Float[Array, "r layers"] | None = None,
        kv: Sequence[ContextKV] | None = None,
    ) -> Float[Array, "a f h w c"]:
        height, channels = x.shape[2], x.shape[-1]
        residual = x
        norm = GroupNorm(
            epsilon=TRANSFORMER_EPSILON, groups=self.norm_groups, dtype=self.dtype, name="norm"
        )
        x = norm(x)
        x = _project(x, self.heads * self.head_dim, self.use_linear, 2, self.dtype, "proj_in")
        x = rearrange(x, "b f h w c -> b f (h w) c")
        for depth in range(self.depth):
            layer = self.layer + depth
            block = SpatialBlock(
                heads=self.heads,
                head_dim=self.head_dim,
                fusion=self.fusion,
                use_norm=self.use_norm,
                dtype=self.dtype,
                impl=self.impl,
                name=f"transformer_blocks.{depth}",
            )
            layer_scale = None if scale is None else scale[:, layer]
            x = block(x, text, style, layer_scale, None if kv is None else kv[layer])
        x = rearrange(x, "b f (h w) c -> b f h w c", h=height)
        x = _project(x, channels, self.use_linear, 2, self.dtype, "proj_out")
        return tiled(residual, x.shape[0]) + x


class TemporalBlock(nn.Module, kw_only=True):
    """Attention over frames twice (the second possibly to a context), feed-forward; pre-normed."""

    heads: int
    head_dim: int
    relative: int | None
    dtype: DTypeLike
    impl: Implementation | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n f c"],
        context: Float[Array, "b n l d"] | None,
        mask: Bool[Array, "1 1 f f"] | None,
        context_mask: Bool[Array, "b 1 f l"] | None,
    ) -> Float[Array, "b n f c"]:
        def attn(name):
            return TemporalAttention(
                heads=self.heads,
                head_dim=self.head_dim,
                relative=self.relative,
                dtype=self.dtype,
                impl=self.impl,
                name=name,
            )

        x = x + attn("attn1")(LayerNorm(name="norm1")(x).astype(self.dtype), mask=mask)
        h = LayerNorm(name="norm2")(x).astype(self.dtype)
        if context is None:
            x = x + attn("attn2")(h, mask=mask)
        else:
            x = x + attn("attn2")(h, context, context_mask)
        return x + GEGLU(dtype=self.dtype, name="ff")(LayerNorm(name="norm3")(x).astype(self.dtype))


class TemporalTransformer(nn.Module, kw_only=True):
    """Transformer over the frames of each position.

    The norm's statistics run over all frames. With `self_attention_only=False` the second attention
    reads text and style tokens.

    Source: StyleCrafter, lvdm/modules/attention.py, TemporalTransformer.
    """

    heads: int
    head_dim: int
    depth: int
    use_linear: bool
    relative: int | None
    self_attention_only: bool
    norm_groups: int = NORM_GROUPS
    dtype: DTypeLike
    impl: Implementation | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        context: Float[Array, "b l d"] | None = None,
        mask: Bool[Array, "1 f f"] | None = None,
        context_mask: Bool[Array, "b l"] | None = None,
    ) -> Float[Array, "b f h w c"]:
        return over_positions(lambda y: self.over_frames(y, context, mask, context_mask), x)

    def over_frames(
        self,
        x: Float[Array, "b f h w c"],
        context: Float[Array, "b l d"] | None,
        mask: Bool[Array, "1 f f"] | None,
        context_mask: Bool[Array, "b l"] | None,
    ) -> Float[Array, "b f h w c"]:
        """The transformer, on all frames of some positions."""
        _, frames, height, width, channels = x.shape
        residual = x
        norm = GroupNorm(
            epsilon=TRANSFORMER_EPSILON,
            groups=self.norm_groups,
            axes=JOINT,
            dtype=self.dtype,
            name="norm",
        )
        x = rearrange(norm(x), "b f h w c -> b (h w) f c")
        x = _project(x, self.heads * self.head_dim, self.use_linear, 1, self.dtype, "proj_in")
        if self.self_attention_only:
            context = context_mask = None
        else:
            context = repeat(context, "b l d -> b n l d", n=height * width)
            if context_mask is not None:
                context_mask = repeat(context_mask, "b l -> b 1 f l", f=frames)
        mask = None if mask is None else mask[None]
        for depth in range(self.depth):
            block = TemporalBlock(
                heads=self.heads,
                head_dim=self.head_dim,
                relative=self.relative,
                dtype=self.dtype,
                impl=self.impl,
                name=f"transformer_blocks.{depth}",
            )
            x = block(x, context, mask, context_mask)
        x = _project(x, channels, self.use_linear, 1, self.dtype, "proj_out")
        return residual + rearrange(x, "b (h w) f c -> b f h w c", h=height, w=width)


def _project(x, features: int, linear: bool, rank: int, dtype: DTypeLike, name: str):
    """Projects channels; as a convolution of size 1 where the checkpoint's weights are one."""
    if linear:
        return nn.Dense(features, dtype=dtype, name=name)(x)
    return PointConv(features=features, rank=rank, dtype=dtype, name=name)(x)


class PointConv(nn.Module, kw_only=True):
    """A convolution of size 1 along `rank` axes: a product over the channels."""

    features: int
    rank: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch d"]:
        size = (*(1,) * self.rank, x.shape[-1], self.features)
        kernel = jnp.asarray(self.param("kernel", nn.initializers.lecun_normal(), size))
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (self.features,)))
        out = x.astype(self.dtype) @ kernel.reshape(size[-2:]).astype(self.dtype)
        return out + jnp.expand_dims(bias.astype(self.dtype), tuple(range(x.ndim - 1)))
