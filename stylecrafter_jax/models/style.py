"""The style adapter's own networks: query transformer and scale predictor."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stylecrafter_jax.config import ScaleEncoderConfig, StyleTransformerConfig
from stylecrafter_jax.models.transformer_blocks import LayerNorm


class MultiheadAttention(nn.Module, kw_only=True):
    """Self-attention with PyTorch's packed projection; `bias` is added to the logits of a key.

    Source: torch.nn.MultiheadAttention, as used by lvdm/modules/encoders/arch_transformer.py.
    """

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], bias: Float[Array, "b n"] | None = None
    ) -> Float[Array, "b n c"]:
        c = x.shape[-1]
        init = nn.initializers.xavier_uniform(in_axis=-1, out_axis=-2)
        weight = self.param("in_proj_weight", init, (3 * c, c)).astype(self.dtype)
        offset = self.param("in_proj_bias", nn.initializers.zeros, (3 * c,)).astype(self.dtype)
        qkv = x @ weight.T + jnp.broadcast_to(offset, (*x.shape[:2], 3 * c))
        q, k, v = rearrange(qkv, "b n (t m e) -> t b n m e", t=3, m=self.heads)
        logits = jnp.einsum("bnme,blme->bmnl", q, k, preferred_element_type=jnp.float32)
        logits *= q.shape[-1] ** -0.5
        if bias is not None:
            logits += rearrange(bias, "b l -> b 1 1 l")
        weights = nn.softmax(logits, axis=-1).astype(self.dtype)
        out = rearrange(jnp.einsum("bmnl,blme->bnme", weights, v), "b n m e -> b n (m e)")
        return nn.Dense(c, dtype=self.dtype, name="out_proj")(out)


class ResidualAttentionBlock(nn.Module, kw_only=True):
    """Pre-norm transformer block with exact GELU.

    Source: StyleCrafter, lvdm/modules/encoders/arch_transformer.py, ResidualAttentionBlock.
    """

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], bias: Float[Array, "b n"] | None = None
    ) -> Float[Array, "b n c"]:
        c = x.shape[-1]
        h = LayerNorm(name="ln_1")(x).astype(self.dtype)
        x = x + MultiheadAttention(heads=self.heads, dtype=self.dtype, name="attn")(h, bias)
        h = LayerNorm(name="ln_2")(x).astype(self.dtype)
        h = nn.gelu(nn.Dense(4 * c, dtype=self.dtype, name="mlp.c_fc")(h), approximate=False)
        return x + nn.Dense(c, dtype=self.dtype, name="mlp.c_proj")(h)


class QueryTransformer(nn.Module, kw_only=True):
    """Learned queries before the given tokens, all attending to all; returns the queries' rows.

    The first norm covers queries and tokens, the last one the queries alone.

    Source: StyleCrafter, lvdm/modules/encoders/adapter.py, StyleTransformer and ScaleEncoder.
    """

    queries: str
    num_tokens: int
    heads: int
    layers: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n c"], bias: Float[Array, "b n"] | None = None
    ) -> Float[Array, "b q c"]:
        b, _, c = tokens.shape
        init = nn.initializers.normal(c**-0.5)
        queries = self.param(self.queries, init, (1, self.num_tokens, c))
        queries = repeat(queries.astype(self.dtype), "1 q c -> b q c", b=b)
        x = jnp.concatenate([queries, tokens.astype(self.dtype)], axis=1)
        x = LayerNorm(name="ln1")(x).astype(self.dtype)
        if bias is not None:
            bias = jnp.pad(bias, ((0, 0), (self.num_tokens, 0)))
        for i in range(self.layers):
            block = ResidualAttentionBlock(
                heads=self.heads, dtype=self.dtype, name=f"transformer_blocks.resblocks.{i}"
            )
            x = block(x, bias)
        return LayerNorm(name="ln2")(x[:, : self.num_tokens]).astype(self.dtype)


class StyleTransformer(nn.Module, kw_only=True):
    """CLIP tokens of one or several images -> style tokens in the text's width.

    Several references are concatenated on the token axis. `weights` (one per token, at least 0)
    says how much each token counts: it adds log(weight) to the token's attention logits, so that a
    weight of 2 is the same as giving that image twice and 0 the same as not giving it.

    Source: StyleCrafter, lvdm/modules/encoders/adapter.py, StyleTransformer; the weights are ours.
    """

    config: StyleTransformerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n c"], weights: Float[Array, "b n"] | None = None
    ) -> Float[Array, "b s d"]:
        config = self.config
        extractor = QueryTransformer(
            queries="style_emb",
            num_tokens=config.num_tokens,
            heads=config.num_heads,
            layers=config.n_layers,
            dtype=self.dtype,
        )
        nn.share_scope(self, extractor)
        x = extractor(tokens, None if weights is None else jnp.log(weights))
        init = nn.initializers.normal(config.in_dim**-0.5)
        proj = self.param("proj", init, (config.in_dim, config.out_dim))
        return x @ proj.astype(self.dtype)


class ScaleEncoder(nn.Module, kw_only=True):
    """Style and text tokens -> one offset in (-1, 1) for every dual cross-attention layer.

    A layer's style branch is scaled by 1 + offset.

    Source: StyleCrafter, lvdm/modules/encoders/adapter.py, ScaleEncoder.
    """

    config: ScaleEncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, style: Float[Array, "b s d"], text: Float[Array, "b l d"]
    ) -> Float[Array, "b layers o"]:
        config = self.config
        extractor = QueryTransformer(
            queries="scale_emb",
            num_tokens=config.num_tokens,
            heads=config.num_heads,
            layers=config.n_layers,
            dtype=self.dtype,
        )
        nn.share_scope(self, extractor)
        x = extractor(jnp.concatenate([style, text], axis=1))
        x = nn.gelu(nn.Dense(32, dtype=self.dtype, name="out.0")(x), approximate=False)
        return nn.tanh(nn.Dense(config.out_dim, dtype=self.dtype, name="out.2")(x))
