"""What the programs of an attention over frames must know beside their arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from stylecrafter_jax.kernels.tiles import softmax


class Sizes(NamedTuple):
    """Sizes of an attention over frames.

    Attributes:
        heads: that the channels are split into.
        head_dim: channels of a head.
        frames: of a position.
        padded: tokens of a position in the arrays, a power of two; those after the frames are
            padding.
        interpret: run the program in Python.
    """

    heads: int
    head_dim: int
    frames: int
    padded: int
    interpret: bool

    @property
    def scale(self) -> float:
        """Factor on the logits."""
        return self.head_dim**-0.5

    def attended(self, logits: Array) -> Array:
        """Returns the softmax over the frames of each token's own position."""
        row = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
        column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        own = row // self.padded == column // self.padded
        return softmax(logits * self.scale, own & (column % self.padded < self.frames))
