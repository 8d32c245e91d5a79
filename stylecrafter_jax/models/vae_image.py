"""The KL autoencoder of latent diffusion, frame by frame."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stylecrafter_jax.config import AutoencoderConfig
from stylecrafter_jax.kernels.self_attention import attention
from stylecrafter_jax.models.layers import NORM_GROUPS, GroupNorm, UpsampledConv

EPSILON = 1e-6


def _norm(groups: int, dtype: DTypeLike, name: str, silu: bool = False) -> GroupNorm:
    return GroupNorm(epsilon=EPSILON, groups=groups, silu=silu, dtype=dtype, name=name)


def _conv(channels: int, kernel: int, dtype: DTypeLike, name: str) -> nn.Conv:
    return nn.Conv(channels, (kernel, kernel), padding=kernel // 2, dtype=dtype, name=name)


class ResnetBlock(nn.Module, kw_only=True):
    """Two convolutions with a residual connection, no time embedding.

    Source: StyleCrafter, lvdm/modules/networks/ae_modules.py, ResnetBlock.
    """

    channels: int
    norm_groups: int = NORM_GROUPS
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        def norm(name):
            return _norm(self.norm_groups, self.dtype, name, silu=True)

        h = _conv(self.channels, 3, self.dtype, "conv1")(norm("norm1")(x))
        h = _conv(self.channels, 3, self.dtype, "conv2")(norm("norm2")(h))
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, self.dtype, "nin_shortcut")(x)
        return x + h


class AttnBlock(nn.Module, kw_only=True):
    """Self-attention over all positions with one head; projections are 1x1 convolutions."""

    norm_groups: int = NORM_GROUPS
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        height, c = x.shape[1], x.shape[-1]
        h = _norm(self.norm_groups, self.dtype, "norm")(x)
        q, k, v = (
            rearrange(_conv(c, 1, self.dtype, name)(h), "b h w c -> b (h w) 1 c") for name in "qkv"
        )
        h = rearrange(attention(q, k, v), "b (h w) 1 c -> b h w c", h=height)
        return x + _conv(c, 1, self.dtype, "proj_out")(h)


class Middle(nn.Module, kw_only=True):
    """Residual block, attention, residual block."""

    norm_groups: int = NORM_GROUPS
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        c, shared = x.shape[-1], {"norm_groups": self.norm_groups, "dtype": self.dtype}
        x = ResnetBlock(channels=c, name="block_1", **shared)(x)
        x = AttnBlock(name="attn_1", **shared)(x)
        return ResnetBlock(channels=c, name="block_2", **shared)(x)


class Encoder(nn.Module, kw_only=True):
    """Pixels -> moments before the quantisation convolution.

    Source: StyleCrafter, lvdm/modules/networks/ae_modules.py, Encoder.
    """

    config: AutoencoderConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        config = self.config
        resolution = config.resolution // config.patch_size
        shared = {"norm_groups": config.norm_groups, "dtype": self.dtype}
        x = rearrange(
            x, "b (h p) (w q) c -> b h w (p q c)", p=config.patch_size, q=config.patch_size
        )
        x = _conv(config.ch, 3, self.dtype, "conv_in")(x)
        for level, mult in enumerate(config.ch_mult):
            for i in range(config.num_res_blocks):
                name = f"down.{level}.block.{i}"
                x = ResnetBlock(channels=mult * config.ch, name=name, **shared)(x)
                if resolution in config.attn_resolutions:
                    x = AttnBlock(name=f"down.{level}.attn.{i}", **shared)(x)
            if level != len(config.ch_mult) - 1:
                # The original pads on the right and below only.
                padding = ((0, 1), (0, 1))
                name = f"down.{level}.downsample.conv"
                x = nn.Conv(
                    x.shape[-1], (3, 3), strides=2, padding=padding, dtype=self.dtype, name=name
                )(x)
                resolution //= 2
        x = Middle(name="mid", **shared)(x)
        x = _norm(config.norm_groups, self.dtype, "norm_out", silu=True)(x)
        width = config.z_channels * (2 if config.double_z else 1)
        return _conv(width, 3, self.dtype, "conv_out")(x)


class Decoder(nn.Module, kw_only=True):
    """Latents after the quantisation convolution -> pixels.

    Source: StyleCrafter, lvdm/modules/networks/ae_modules.py, Decoder.
    """

    config: AutoencoderConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        config = self.config
        last = len(config.ch_mult) - 1
        resolution = config.resolution // config.downsampling
        shared = {"norm_groups": config.norm_groups, "dtype": self.dtype}
        x = _conv(config.ch_mult[-1] * config.ch, 3, self.dtype, "conv_in")(z)
        x = Middle(name="mid", **shared)(x)
        for level in range(last, -1, -1):
            channels = config.ch_mult[level] * config.ch
            for i in range(config.num_res_blocks + 1):
                name = f"up.{level}.block.{i}"
                x = ResnetBlock(channels=channels, name=name, **shared)(x)
                if resolution in config.attn_resolutions:
                    x = AttnBlock(name=f"up.{level}.attn.{i}", **shared)(x)
            if level:
                conv = UpsampledConv(dtype=self.dtype, name=f"up.{level}.upsample.conv")
                x = rearrange(conv(x[:, None]), "b 1 h w c -> b h w c")
                resolution *= 2
        x = _norm(config.norm_groups, self.dtype, "norm_out", silu=True)(x)
        p = config.patch_size
        x = _conv(config.out_ch * p * p, 3, self.dtype, "conv_out")(x)
        return rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)


class Encode(nn.Module, kw_only=True):
    """Pixels in [-1, 1] -> moments of the (unscaled) latents; see `posterior`.

    Source: StyleCrafter, lvdm/models/autoencoder.py, AutoencoderKL.encode.
    """

    config: AutoencoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 m"]:
        h = Encoder(config=self.config, dtype=self.dtype, name="encoder")(x.astype(self.dtype))
        moments = _conv(2 * self.config.embed_dim, 1, self.dtype, "quant_conv")(h)
        return moments.astype(jnp.float32)


def posterior(
    moments: Float[Array, "b h w m"],
) -> tuple[Float[Array, "b h w z"], Float[Array, "b h w z"]]:
    """Returns mean and log-variance, the latter clamped to [-30, 20].

    Source: StyleCrafter, lvdm/distributions.py, DiagonalGaussianDistribution.
    """
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


class Decode(nn.Module, kw_only=True):
    """(Unscaled) latents -> pixels, mostly in [-1, 1], not clamped.

    Source: StyleCrafter, lvdm/models/autoencoder.py, AutoencoderKL.decode.
    """

    config: AutoencoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 c"]:
        config = self.config
        z = _conv(config.z_channels, 1, self.dtype, "post_quant_conv")(z.astype(self.dtype))
        x = Decoder(config=config, dtype=self.dtype, name="decoder")(z)
        return x.astype(jnp.float32)
