"""A small convolutional network that judges pictures and clips of the demo world."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stylecrafter_jax import params as weights
from stylecrafter_jax.params import Params

WIDTHS = (32, 64, 96)
GROUPS = 4  # of channels that are normalised together, few enough to keep the colours apart


class JudgeNetwork(nn.Module, kw_only=True):
    """Pixels in [-1, 1] -> one vector per head.

    It shares nothing with the model it judges: no attention, no patches, no latents. Each of three
    stages halves the grid and ends in a residual block; mean and deviation of the last grid, which
    also tell textures, feed the heads.

    Attributes:
        heads: length of each head's vector, by name.
    """

    heads: tuple[tuple[str, int], ...]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> dict[str, Array]:
        for stage, width in enumerate(WIDTHS):
            x = nn.Conv(width, (4, 4), strides=2, name=f"down_{stage}")(x)
            h = nn.silu(nn.GroupNorm(GROUPS, name=f"norm_{stage}_0")(x))
            h = nn.Conv(width, (3, 3), name=f"conv_{stage}_0")(h)
            h = nn.silu(nn.GroupNorm(GROUPS, name=f"norm_{stage}_1")(h))
            x = x + nn.Conv(width, (3, 3), name=f"conv_{stage}_1")(h)
        x = nn.silu(nn.GroupNorm(GROUPS, name="norm_out")(x))
        pooled = jnp.concatenate([x.mean((1, 2)), x.std((1, 2))], axis=-1)
        pooled = nn.silu(nn.Dense(256, name="hidden")(pooled))
        return {name: nn.Dense(size, name=name)(pooled) for name, size in self.heads}


def init_params(module: JudgeNetwork, channels: int, key: Array) -> dict[str, Any]:
    """Returns freshly initialised flat parameters for pictures of so many channels."""
    with jax.numpy_rank_promotion("allow"):  # Linen's GroupNorm relies on it
        return weights.flatten(module.init(key, jnp.zeros((1, 16, 16, channels)))["params"])


def apply(
    module: JudgeNetwork, params: Params, x: Float[Array, "b h w c"]
) -> dict[str, Float[Array, "b _"]]:
    """Returns each head's vectors."""
    with jax.numpy_rank_promotion("allow"):
        out: Any = module.apply({"params": weights.nest(params)}, x)
    return out
