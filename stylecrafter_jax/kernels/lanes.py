"""Heads in the lanes of a TPU's tile."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from stylecrafter_jax.kernels.tiles import columns

LANES = 128


def together(heads: int, head_dim: int) -> int:
    """Returns how many channels `for_heads` visits at once; 0 if it visits every head alone."""
    width = max(head_dim, LANES)
    fits = width % head_dim == 0 and width % LANES == 0
    return width if fits and heads * head_dim >= width else 0


def for_heads(
    heads: int, head_dim: int, body: Callable[[Any, Callable[[Array], Array]], None]
) -> None:
    """Calls `body` for every head with a slice of channels, and what keeps the head's own of them.

    Lanes that several whole heads share, or that one head fills, are visited by a loop, since a
    program whose every head is unrolled takes many times as long to compile. A product over masked
    lanes costs a matrix unit what one over a head's own would.
    """
    channels, width = heads * head_dim, together(heads, head_dim)

    def visit(i, _):
        lanes = pl.ds(pl.multiple_of(i * width, LANES), width)
        for first in range(0, width, head_dim):
            body(lanes, functools.partial(own, first, head_dim))
        return 0

    loops = channels // width if width else 0
    if loops:
        jax.lax.fori_loop(0, loops, visit, 0)
    for first in range(loops * width, channels, head_dim):
        body(pl.ds(first, head_dim), lambda x: x)


def own(first: int, width: int, x: Array) -> Array:
    """Returns a tile with 0 in all but `width` columns."""
    if x.shape[1] == width:
        return x
    return jnp.where(columns(x, first, first + width), x, jnp.zeros_like(x))
