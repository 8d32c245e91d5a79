"""Arithmetic on tiles in fast memory, shared by the kernels' bodies; all of it in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

MASKED = -1e30
AXES = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}


def product(x: Array, y: Array, kind: str = "nn") -> Array:
    """Returns x y ("nn"), x y^T ("nt") or x^T y ("tn"); float32 arguments are not rounded."""
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        x, y, (AXES[kind], ((), ())), precision=exact, preferred_element_type=jnp.float32
    )


def softmax(logits: Array, kept: Array) -> Array:
    """Returns the softmax of each row over its `kept` entries; the others get 0."""
    logits = jnp.where(kept, logits, MASKED)
    weights = jnp.where(kept, jnp.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    return weights / weights.sum(-1, keepdims=True)


def softmax_gradient(weights: Array, gradient: Array) -> Array:
    """Returns the gradient of the logits of a softmax from that of its weights."""
    return weights * (gradient - (weights * gradient).sum(-1, keepdims=True))


def columns(tile: Array, first: int, stop: int) -> Array:
    """Returns where a tile's column lies from `first` to before `stop`."""
    column = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 1)
    return (column >= first) & (column < stop)
