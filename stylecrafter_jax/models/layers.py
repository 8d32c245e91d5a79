"""Building blocks of both UNets: time embedding, norms, residual blocks, resampling."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stylecrafter_jax.kernels.cache import in_parts
from stylecrafter_jax.kernels.sharded import over_frames, over_positions

RESNET_EPSILON = 1e-5
TRANSFORMER_EPSILON = 1e-6
NORM_GROUPS = 32
# Of even and odd output columns: which of the 3 taps fall on the first and which on the second of
# the two input columns that they see.
TAPS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
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

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        return self.parts(x)[0]

    @nn.compact
    def parts(self, *parts: Float[Array, "..."]) -> list[Float[Array, "..."]]:
        """Returns each of several parts, which together are the channels; none may cut a group."""
        c = sum(part.shape[-1] for part in parts)
        scale = jnp.asarray(self.param("scale", nn.initializers.ones, (c,)))
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (c,)))
        normed, first = [], 0
        for part in parts:
            own = slice(first, first + part.shape[-1])
            groups = self.groups * part.shape[-1] // c
            normed.append(self.normalised(part, scale[own], bias[own], groups))
            first = own.stop
        return normed

    def normalised(
        self, x: Float[Array, "*batch c"], scale: Array, bias: Array, count: int
    ) -> Float[Array, "*batch c"]:
        """Returns a part of so many groups with its own scale and bias."""
        x = x.astype(jnp.float32)
        groups = rearrange(x, "... (g k) -> ... g k", g=count)
        # Axis -1 of x is the axis pair (g, k); statistics run over k and the other axes named.
        axes = tuple(axis - 1 for axis in self.axes if axis != -1) + (-1,)
        mean = groups.mean(axes, keepdims=True)
        variance = jnp.square(groups - mean).mean(axes, keepdims=True)
        groups = (groups - mean) / jnp.sqrt(variance + self.epsilon)
        x = rearrange(groups, "... g k -> ... (g k)")
        x = x * jnp.expand_dims(scale, tuple(range(x.ndim - 1))).astype(jnp.float32)
        x = x + jnp.expand_dims(bias, tuple(range(x.ndim - 1))).astype(jnp.float32)
        return (nn.silu(x) if self.silu else x).astype(self.dtype)


def tiled(x: Float[Array, "b ..."], rows: int) -> Float[Array, "a ..."]:
    """Returns copies of a batch one after another, `rows` rows in all: one for each branch.

    Until they first look at their text, the branches of a guided step are the same.
    """
    copies = rows // x.shape[0]
    return x if copies == 1 else jnp.tile(x, (copies,) + (1,) * (x.ndim - 1))


def joined(
    x: Float[Array, "b f h w c"], skip: Float[Array, "a f h w s"], groups: int
) -> list[Float[Array, "..."]]:
    """Returns both as one array of channels; or as they are, where that saves work.

    It does where `skip` has fewer rows, unless a group of a norm over both would be cut.
    """
    parted = x.shape[-1] * groups % (x.shape[-1] + skip.shape[-1]) == 0
    if skip.shape[0] < x.shape[0] and parted:
        return [x, skip]
    return [jnp.concatenate([x, tiled(skip, x.shape[0])], axis=-1)]


def upsample_nearest(x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
    """Returns `x` with every pixel doubled along both sides."""
    return repeat(x, "b f h w c -> b f (h p) (w q) c", p=2, q=2)


def average_pool(x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
    """Returns the means of 2x2 pixels."""
    return reduce(x, "b f (h p) (w q) c -> b f h w c", "mean", p=2, q=2)


def convolved(
    x: Float[Array, "b f h w c"],
    kernel: Float[Array, "p q c d"],
    padding: Any,
    dtype: DTypeLike,
    strides: tuple[int, int] = (1, 1),
) -> Float[Array, "b f h2 w2 d"]:
    """Returns the convolution of every frame, without a bias."""

    def conv(frames, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            frames, kernel, strides, padding, dimension_numbers=numbers
        )

    def convolve(x, kernel):
        frames = rearrange(x, "b f h w c -> (b f) h w c")
        out = in_parts(lambda some: conv(some, kernel), 4 * frames[0].size, frames)
        return rearrange(out, "(b f) h w d -> b f h w d", b=x.shape[0])

    return over_frames(convolve, x.astype(dtype), kernel.astype(dtype))


class Conv(nn.Module, kw_only=True):
    """A 3x3 convolution of every frame, padded by one pixel."""

    features: int
    strides: tuple[int, int] = (1, 1)
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 d"]:
        size = (3, 3, x.shape[-1], self.features)
        kernel = jnp.asarray(self.param("kernel", nn.initializers.lecun_normal(), size))
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (self.features,)))
        out = convolved(x, kernel, ((1, 1), (1, 1)), self.dtype, self.strides)
        return out + bias.astype(self.dtype)[None, None, None, None]


class Downsample(nn.Module, kw_only=True):
    """Halves height and width: a strided convolution, or an average without weights."""

    learned: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        if not self.learned:
            return average_pool(x)
        return Conv(features=x.shape[-1], strides=(2, 2), dtype=self.dtype, name="op")(x)


class Upsample(nn.Module, kw_only=True):
    """Doubles height and width by repetition, then optionally a 3x3 convolution."""

    learned: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        if not self.learned:
            return upsample_nearest(x)
        return UpsampledConv(dtype=self.dtype, name="conv")(x)


class UpsampledConv(nn.Module, kw_only=True):
    """A 3x3 convolution of `x` repeated to double height and width, which is never made.

    Along the width an output pixel sees two of the input's, one of them under two of the kernel's
    taps: two kernels of two taps, for even and for odd columns. Along the height, with a, b, c the
    kernel's rows and d[i] = x[i + 1] - x[i],

        even row i = a x[i - 1] + (b + c) x[i] = (a + b + c) x[i] - a d[i - 1]
        odd row i  = (a + b) x[i] + c x[i + 1] = (a + b + c) x[i] + c d[i]

    which share a product: 12 products of the 36 that the repeated pixels would take.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        c, (height, width) = x.shape[-1], x.shape[2:4]
        kernel = jnp.asarray(self.param("kernel", nn.initializers.lecun_normal(), (3, 3, c, c)))
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (c,)))
        kernel = kernel.astype(jnp.float32)
        rows = jnp.stack([kernel.sum(0), -kernel[0], kernel[2]])
        rows = jnp.einsum("qju,tucd->tjcqd", TAPS, rows)[:, None]
        shared, above, below = rearrange(rows, "t i j c q d -> t i j c (q d)")
        x = x.astype(self.dtype)
        steps = jnp.diff(x, axis=2, prepend=0, append=0)

        def conv(y, kernel):
            out = convolved(y, kernel, ((0, 0), (1, 1)), self.dtype)
            out = rearrange(out, "b f h w (q d) -> q b f h w d", q=2)
            columns = [out[q, :, :, :, q : q + width] for q in (0, 1)]
            return rearrange(jnp.asarray(columns), "q b f h w d -> b f h (w q) d")

        both = conv(x, shared)
        even = both + conv(steps[:, :, :height], above)
        odd = both + conv(steps[:, :, 1:], below)
        out = rearrange(jnp.asarray([even, odd]), "p b f h w d -> b f (h p) w d")
        return out + bias.astype(self.dtype)[None, None, None, None]


class TemporalConv(nn.Module, kw_only=True):
    """Four convolutions over time with a residual connection.

    Source: StyleCrafter, lvdm/modules/networks/openaimodel3d.py, TemporalConvBlock.
    """

    spatial: bool
    norm_groups: int = NORM_GROUPS
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        return self.convolved(x) if self.spatial else over_positions(self.convolved, x)

    def convolved(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        """The convolutions, on all frames of some positions; of all, where they mix them."""
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


class PartedConv(nn.Module, kw_only=True):
    """A convolution of parts that are channels of one input; each at its own number of rows.

    A part with fewer rows than the first is convolved once for all its copies.
    """

    features: int
    kernel: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, parts: Sequence[Float[Array, "..."]]) -> Float[Array, "b f h w d"]:
        c, size = sum(part.shape[-1] for part in parts), self.kernel
        init = nn.initializers.lecun_normal()
        kernel = jnp.asarray(self.param("kernel", init, (size, size, c, self.features)))
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (self.features,)))
        total, first = bias.astype(self.dtype)[None, None, None, None], 0
        for part in parts:
            out = convolved(part, kernel[:, :, first : first + part.shape[-1]], "SAME", self.dtype)
            total = total + tiled(out, parts[0].shape[0])
            first += part.shape[-1]
        return total


class ResBlock(nn.Module, kw_only=True):
    """Residual block with time embedding; may resample, may end in a temporal convolution.

    `skip` holds the last channels of the input, and may have fewer rows than the first ones;
    `projected` is what the block would make of `emb`.

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
        self,
        x: Float[Array, "b f h w c"],
        emb: Any,
        temporal: bool,
        skip: Float[Array, "a f h w s"] | None = None,
        projected: Float[Array, "b p"] | None = None,
    ) -> Float[Array, "b f h2 w2 d"]:
        parts = [x] if skip is None else joined(x, skip, self.norm_groups)

        def conv(name, parts, kernel=3):
            shared = {"features": self.out_channels, "kernel": kernel, "dtype": self.dtype}
            return PartedConv(**shared, name=name)(parts)

        def norm(name, silu=True):
            return GroupNorm(
                epsilon=RESNET_EPSILON,
                groups=self.norm_groups,
                silu=silu,
                dtype=self.dtype,
                name=name,
            )

        resample = {"none": lambda y: y, "up": upsample_nearest, "down": average_pool}
        normed = norm("in_layers.0").parts(*parts)
        h = conv("in_layers.2", [resample[self.resample](part) for part in normed])
        parts = [resample[self.resample](part) for part in parts]

        width = self.out_channels * (2 if self.use_scale_shift_norm else 1)
        project = nn.Dense(width, dtype=self.dtype, name="emb_layers.1")
        emb = project(nn.silu(emb)) if projected is None else projected
        emb = jnp.expand_dims(emb, (1, 2, 3))
        if self.use_scale_shift_norm:
            scale, shift = jnp.split(emb, 2, axis=-1)
            h = nn.silu(norm("out_layers.0", silu=False)(h) * (1.0 + scale) + shift)
        else:
            h = norm("out_layers.0")(h + emb)
        h = conv("out_layers.3", [h])
        same = len(parts) == 1 and parts[0].shape[-1] == self.out_channels
        h = h + (parts[0] if same else conv("skip_connection", parts, 1))
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
