"""Building blocks of both UNets: time embedding, norms, residual blocks, resampling."""

import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

RESNET_EPSILON = 1e-5
TRANSFORMER_EPSILON = 1e-6
NORM_GROUPS = 32
PER_FRAME = (-3, -2, -1)  # normalise over h, w and the channels of a group
JOINT = (-4, -3, -2, -1)  # and over the frames as well


def timestep_embedding(t: Float[Array, " b"], width: int) -> Float[Array, "b {width}"]:
    """Returns the sinusoidal embedding [cos | sin] with periods from 2 pi to 20000 pi.

    Source: StyleCrafter, lvdm/models/utils_diffusion.py, timestep_embedding.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t[:, None] * frequencies[None, :]
    emb = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(emb, ((0, 0), (0, width % 2)))


class EmbeddingMLP(nn.Module, kw_only=True):
    """Linear, SiLU, Linear over a sinusoidal embedding; in float32 whatever the compute dtype."""

    width: int

    @nn.compact
    def __call__(self, emb: Float[Array, "b c"]) -> Float[Array, "b k"]:
        hidden = nn.silu(nn.Dense(self.width, name="0")(emb))
        return nn.Dense(self.width, name="2")(hidden)


class GroupNorm(nn.Module, kw_only=True):
    """GroupNorm with float32 statistics, optionally followed by SiLU."""

    epsilon: float
    groups: int = NORM_GROUPS
    axes: tuple[int, ...] = PER_FRAME
    silu: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        x = x.astype(jnp.float32)
        groups = rearrange(x, "... (g k) -> ... g k", g=self.groups)
        # Axis -1 of x is the axis pair (g, k); statistics run over k and the other axes named.
        axes = tuple(axis - 1 for axis in self.axes if axis != -1) + (-1,)
        mean = groups.mean(axes, keepdims=True)
        variance = jnp.square(groups - mean).mean(axes, keepdims=True)
        groups = (groups - mean) / jnp.sqrt(variance + self.epsilon)
        x = rearrange(groups, "... g k -> ... (g k)")
        x = x * jnp.expand_dims(scale, tuple(range(x.ndim - 1))).astype(jnp.float32)
        x = x + jnp.expand_dims(bias, tuple(range(x.ndim - 1))).astype(jnp.float32)
        return (nn.silu(x) if self.silu else x).astype(self.dtype)


def upsample_nearest(x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
    """Returns `x` with every pixel doubled along both sides."""
    return repeat(x, "b f h w c -> b f (h p) (w q) c", p=2, q=2)


def average_pool(x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
    """Returns the means of 2x2 pixels."""
    return reduce(x, "b f (h p) (w q) c -> b f h w c", "mean", p=2, q=2)


class Downsample(nn.Module, kw_only=True):
    """Halves height and width: a strided convolution, or an average without weights."""

    learned: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        if not self.learned:
            return average_pool(x)
        conv = nn.Conv(x.shape[-1], (3, 3), strides=2, padding=1, dtype=self.dtype, name="op")
        return conv(x)


class Upsample(nn.Module, kw_only=True):
    """Doubles height and width by repetition, then optionally a 3x3 convolution."""

    learned: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        x = upsample_nearest(x)
        if not self.learned:
            return x
        return nn.Conv(x.shape[-1], (3, 3), padding=1, dtype=self.dtype, name="conv")(x)


class TemporalConv(nn.Module, kw_only=True):
    """Four convolutions over time with a residual connection.

    Source: StyleCrafter, lvdm/modules/networks/openaimodel3d.py, TemporalConvBlock.
    """

    spatial: bool
    norm_groups: int = NORM_GROUPS
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        wide = (3, 3, 3) if self.spatial else (3, 1, 1)
        # The convolution's index counts the original's dropout layer, absent from conv1.
        layers = (("conv1", 2, wide), ("conv2", 3, wide), ("conv3", 3, (3, 1, 1)))
        h = x
        for name, index, kernel in (*layers, ("conv4", 3, (3, 1, 1))):
            norm = GroupNorm(
                epsilon=RESNET_EPSILON,
                groups=self.norm_groups,
                axes=JOINT,
                silu=True,
                dtype=self.dtype,
                name=f"{name}.0",
            )
            padding = [(size // 2, size // 2) for size in kernel]
            h = nn.Conv(
                x.shape[-1], kernel, padding=padding, dtype=self.dtype, name=f"{name}.{index}"
            )(norm(h))
        return x + h


class ResBlock(nn.Module, kw_only=True):
    """Residual block with time embedding; may resample, may end in a temporal convolution.

    Source: StyleCrafter, lvdm/modules/networks/openaimodel3d.py, ResBlock.
    """

    out_channels: int
    resample: Literal["none", "up", "down"] = "none"
    use_scale_shift_norm: bool = False
    temporal_conv: Literal["none", "time", "space_time"] = "none"
    norm_groups: int = NORM_GROUPS
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], emb: Float[Array, "b k"], temporal: bool
    ) -> Float[Array, "b f h2 w2 d"]:
        def conv(name, kernel=3):
            return nn.Conv(
                self.out_channels,
                (kernel, kernel),
                padding=kernel // 2,
                dtype=self.dtype,
                name=name,
            )

        def norm(name, silu=True):
            return GroupNorm(
                epsilon=RESNET_EPSILON,
                groups=self.norm_groups,
                silu=silu,
                dtype=self.dtype,
                name=name,
            )

        resample = {"none": lambda y: y, "up": upsample_nearest, "down": average_pool}
        h = conv("in_layers.2")(resample[self.resample](norm("in_layers.0")(x)))
        x = resample[self.resample](x)

        width = self.out_channels * (2 if self.use_scale_shift_norm else 1)
        emb = nn.Dense(width, dtype=self.dtype, name="emb_layers.1")(nn.silu(emb))
        emb = rearrange(emb, "b c -> b 1 1 1 c")
        if self.use_scale_shift_norm:
            scale, shift = jnp.split(emb, 2, axis=-1)
            h = nn.silu(norm("out_layers.0", silu=False)(h) * (1.0 + scale) + shift)
        else:
            h = norm("out_layers.0")(h + emb)
        h = conv("out_layers.3")(h)
        skip = x if x.shape[-1] == self.out_channels else conv("skip_connection", 1)(x)
        h = skip + h
        if self.temporal_conv != "none" and temporal:
            spatial = self.temporal_conv == "space_time"
            # The original's spelling.
            over_time = TemporalConv(
                spatial=spatial,
                norm_groups=self.norm_groups,
                dtype=self.dtype,
                name="temopral_conv",
            )
            h = over_time(h)
        return h
