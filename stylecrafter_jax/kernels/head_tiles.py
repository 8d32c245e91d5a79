"""Heads as tiles of a GPU program, whose sides Triton wants to be powers of two."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

PARAMETERS = plgpu.CompilerParams(num_warps=4, num_stages=2)
# Of a pair; an int of Python is too little for masked loads where they are interpreted.
FIRST, SECOND = np.int32(0), np.int32(1)


def by_head(x: Array, heads: int) -> Array:
    """Returns an array with its channels split into heads."""
    return rearrange(x, "... (m e) -> ... m e", m=heads)


def merged(x: Array) -> Array:
    """Returns what `by_head` was given."""
    return rearrange(x, "... m e -> ... (m e)")


def padded(head_dim: int) -> int:
    """Returns the columns of a head's tile."""
    return pl.next_power_of_2(head_dim)


def channels(width: int, head_dim: int) -> Array:
    """Returns which columns of a tile are channels, as a row; the others are padding."""
    return (jnp.arange(width) < head_dim)[None]


def total(x: Array) -> Array:
    """Returns the sum of every row, as a column."""
    return x.sum(-1, keepdims=True)
