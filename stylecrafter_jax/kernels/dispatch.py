"""Which implementation of a kernel runs: where the program will run, and what was asked for."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

Implementation = Literal["reference", "xla", "pallas"]
HEAD_DIMS = (8, 256)  # channels: the step between those that the kernels cover, and the most


def target() -> str:
    """Returns the platform that a program traced now is for: the mesh's in use, or the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def fastest() -> Implementation:
    """Returns what is known to be fastest there; no kernel was timed on GPU."""
    return "pallas" if target() == "tpu" else "xla"


def body_platform() -> str:
    """Returns whose Pallas body to take; a program for neither platform interprets the TPU's."""
    return "gpu" if target() == "gpu" else "tpu"


def width_of_head(width: int, heads: int) -> int:
    """Returns the channels of a head.

    Raises:
        ValueError: the heads do not divide the width.
    """
    if width % heads:
        raise ValueError(f"{heads} heads do not divide the width {width}")
    return width // heads


def not_covered(dtype, head_dim: int) -> str | None:
    """Returns which type or width of a head no Pallas kernel covers; None if they do."""
    step, most = HEAD_DIMS
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"{dtype}"
    if head_dim % step or not step <= head_dim <= most:
        return f"heads of {head_dim} channels"
    return None


def multiplied(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the type to multiply matrices of `dtype` in: itself, but float32 on CPU.

    XLA:CPU has no product of bfloat16 with a float32 result for every shape, and none is faster.
    """
    return jnp.dtype(jnp.float32) if target() == "cpu" and dtype == jnp.bfloat16 else dtype


def chosen(impl: str | None, *, fastest: Implementation, missing: str | None) -> str:
    """Returns what was asked for, or of the ones that cover the case the fastest.

    Args:
        impl: asked for; None leaves it open.
        fastest: known to be, on the platform that the program is for.
        missing: what the Pallas kernel does not cover of the case; None if it covers it.

    Raises:
        NotImplementedError: Pallas was asked for and does not cover the case.
        ValueError: there is no such implementation.
    """
    if impl is not None and impl not in get_args(Implementation):
        raise ValueError(f"impl must be reference, xla, pallas or None, got {impl!r}")
    if impl is None:
        return "xla" if fastest == "pallas" and missing else fastest
    if impl == "pallas" and missing:
        raise NotImplementedError(f"the Pallas kernel does not cover {missing}")
    return impl
