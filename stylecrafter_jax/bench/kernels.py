"""The attentions of the UNet at each of its levels, by every implementation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from stylecrafter_jax.config import UNetConfig
from stylecrafter_jax.kernels.dual_attention import dual_attention
from stylecrafter_jax.kernels.self_attention import attention
from stylecrafter_jax.kernels.temporal_attention import temporal_attention
from stylecrafter_jax.plan.tasks import Program
from stylecrafter_jax.programs import jitted

TEXT, STYLE = 77, 8  # tokens
BRANCHES = 3

Case = tuple[str, Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]


def kernel_programs(
    unet: UNetConfig,
    *,
    frames: int,
    height: int,
    width: int,
    impl: str | None,
    dtype: DTypeLike,
    gradients: bool = False,
) -> list[Program]:
    """Returns a program for each attention of each level, of one video and all guidance branches.

    Args:
        unet: which levels there are, and how wide they are.
        frames: of the video.
        height: of its latents.
        width: of its latents.
        impl: implementation of the fused attentions; of self-attention, `pallas` takes the flash
            attention of the platform, and `xla` XLA.
        dtype: of queries, keys and values.
        gradients: all gradients as well.
    """
    programs = []
    for level, mult in enumerate(unet.channel_mult):
        if 2**level not in unet.attention_resolutions:
            continue
        heads, head_dim = unet.heads(mult * unet.model_channels)
        size = (height // 2**level, width // 2**level)
        for name, function, args in _cases(frames, size, heads, head_dim, impl, jnp.dtype(dtype)):
            label = f"{name} {size[0]}x{size[1]}, {heads} heads of {head_dim}"
            run = with_gradients(function) if gradients else function
            make = functools.partial(jitted, run)
            programs.append(Program(label, make, args, ("rows",) * len(args), 1.0))
    return programs


def with_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function's value and all gradients of its sum."""

    def run(*arrays):
        value, pull = jax.vjp(function, *arrays)
        return value, pull(jnp.ones_like(value))

    return run


def _cases(
    frames: int, size: tuple[int, int], heads: int, head_dim: int, impl: Any, dtype: Any
) -> Sequence[Case]:
    of, tokens, channels = jax.ShapeDtypeStruct, size[0] * size[1], heads * head_dim
    text, style = of((BRANCHES, TEXT, channels), dtype), of((1, STYLE, channels), dtype)
    q, norm = of((BRANCHES, frames * tokens, channels), dtype), of((channels,), jnp.float32)
    row = of((BRANCHES * tokens, frames, channels), dtype)
    near = of((2 * frames + 1, head_dim), jnp.float32)
    own = of((BRANCHES * frames, tokens, heads, head_dim), dtype)
    # Flash attention has another name on each platform: None takes the platform's.
    flash: Any = {"reference": "xla", "pallas": None}.get(impl, impl)
    fused = {"heads": heads, "impl": impl}
    return (
        (
            "dual",
            functools.partial(dual_attention, **fused),
            (q, text, text, style, style, of((1,), jnp.float32), norm, norm),
        ),
        (
            "temporal",
            functools.partial(temporal_attention, **fused),
            (row, row, row, near, near),
        ),
        ("self", functools.partial(attention, impl=flash), (own, own, own)),
    )
