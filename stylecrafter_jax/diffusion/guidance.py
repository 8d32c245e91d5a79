"""Classifier-free guidance by text and by style.

The network is asked up to three times, in branches that differ in what they are conditioned on:

    full    text and style
    text    the same text, no style
    uncond  the unconditional text, no style

With weights l_s (style) and l_t (text) the guided output is

    released   full   + l_s (full - text) + l_t (text - uncond)      the published programs
    paper      uncond + l_s (full - text) + l_t (text - uncond)      the paper, eq. 2
    ordinary   uncond + l_t (full - uncond)                          no style weight

`released` with (l_t, l_s) is `paper` with (l_t + 1, l_s + 1). Without style images full and text
are the same, and both three-way rules become ordinary guidance of weight 1 + l_t (released) or l_t
(paper). Each rule is a weighted sum of branches, and a branch of weight 0 is not run.

Source: StyleCrafter (arXiv 2312.00330), eq. 2; its lvdm/models/samplers/ddim.py, DDIMStyleSampler.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

Convention = Literal["released", "paper"]
Branch = Literal["full", "text", "uncond"]
# Styled rows lead the batch.
BRANCHES: tuple[Branch, ...] = get_args(Branch)
DenoiseBranches = Callable[[Array, Array, tuple[Branch, ...]], Array]
DenoiseBranchesWithMemory = Callable[[Array, Array, tuple[Branch, ...], Any], tuple[Array, Any]]


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How strongly text and style steer.

    Attributes:
        text: l_t.
        style: l_s, or None for ordinary guidance, where the style follows the text's weight.
        convention: which three-way rule the two weights are meant for.
        rescale: 0 to 1; pulls the guided output's standard deviation to that of `full` (Lin et al.
            2023, arXiv 2305.08891, eq. 15 and 16).
        interval: guide only where t / timesteps lies in [low, high]; 1 is pure noise and 0 is
            clean. Elsewhere `full` is taken as it is (Kynkäänniemi et al. 2024, arXiv 2404.07724).
    """

    text: float
    style: float | None = None
    convention: Convention = "released"
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        for name, value in (("text", self.text), ("style", self.style)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"guidance: {name} must be finite, got {value}")
        if self.convention not in get_args(Convention):
            known = ", ".join(get_args(Convention))
            raise ValueError(f"guidance: wanted a convention of {known}, got {self.convention!r}")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"guidance: rescale must be between 0 and 1, got {self.rescale}")
        low, high = self.interval
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"guidance: interval must rise within [0, 1], got {self.interval}")

    @property
    def always(self) -> bool:
        """Whether the interval is the whole of sampling."""
        return self.interval == (0.0, 1.0)


def weights(guidance: Guidance, styled: bool) -> dict[Branch, float]:
    """Returns the weight of each branch; they sum to 1.

    Args:
        guidance: the rule.
        styled: there are style images.
    """
    text, style = guidance.text, guidance.style
    if style is None:
        return {"full": text, "text": 0.0, "uncond": 1.0 - text}
    released = float(guidance.convention == "released")
    if not styled:
        return {"full": released + text, "text": 0.0, "uncond": 1.0 - released - text}
    return {"full": released + style, "text": text - style, "uncond": 1.0 - released - text}


def branches(guidance: Guidance, styled: bool) -> tuple[Branch, ...]:
    """Returns the branches to run, in the order of `BRANCHES`.

    These are the ones with a weight; and `full` where rescaling or an interval refers to it.
    """
    needed = {name for name, weight in weights(guidance, styled).items() if weight != 0.0}
    if guidance.rescale > 0.0 or not guidance.always:
        needed.add("full")
    return tuple(name for name in BRANCHES if name in needed)


def combine(
    guidance: Guidance,
    outputs: Mapping[Branch, Float[Array, "b ..."]],
    t_fraction: Float[Array, " b"],
) -> Float[Array, "b ..."]:
    """Returns the guided output, in float32.

    Args:
        guidance: the rule.
        outputs: those of `branches(guidance, styled)`; without `text` where style has no branch of
            its own.
        t_fraction: t / timesteps of each sample, for the interval.

    Raises:
        ValueError: `outputs` are not those of the styled or of the unstyled branches.
    """
    given: tuple[Branch, ...] = tuple(name for name in BRANCHES if name in outputs)
    wanted = {styled: branches(guidance, styled) for styled in (True, False)}
    if len(given) != len(outputs) or given not in wanted.values():
        expected = " or ".join(str(names) for names in dict.fromkeys(wanted.values()))
        raise ValueError(f"guidance wants the branches {expected}, got {tuple(outputs)}")
    weight = weights(guidance, given == wanted[True])
    parts = {name: outputs[name].astype(jnp.float32) for name in given}
    guided = sum((weight[name] * parts[name] for name in given), start=jnp.float32(0.0))
    axes = tuple(range(1, guided.ndim))
    if guidance.rescale > 0.0:
        ratio = _std(parts["full"], axes) / _std(guided, axes)
        guided = guided * (guidance.rescale * ratio + 1.0 - guidance.rescale)
    if guidance.always:
        return guided
    inside = jnp.expand_dims(_inside(guidance, t_fraction), axes)
    return jnp.where(inside, guided, parts["full"])


def _std(x: Array, axes: tuple[int, ...]) -> Array:
    """Returns the standard deviation of each sample, unbiased as in the published programs."""
    return jnp.std(x, axis=axes, keepdims=True, ddof=1)


def _inside(guidance: Guidance, t_fraction: Any) -> Any:
    low, high = guidance.interval
    return (t_fraction >= low) & (t_fraction <= high)


def guided(
    denoise_branches: DenoiseBranches, guidance: Guidance, styled: bool, *, timesteps: int
) -> Callable[[Array, Array], Array]:
    """Returns `denoise(x, t)`, which makes one batched call of the network.

    Args:
        denoise_branches: `(x [b ...], t [b], the k branches) -> out [k*b ...]`; the rows of one
            branch are together, and the branches in the order given.
        guidance: the rule.
        styled: there are style images.
        timesteps: of the schedule.

    Outside the interval only `full` runs.
    """

    def without(x, t, names, memory):
        return denoise_branches(x, t, names), memory

    denoise = guided_with_memory(without, guidance, styled, timesteps=timesteps)
    return lambda x, t: denoise(x, t, None)[0]


def guided_with_memory(
    denoise_branches: DenoiseBranchesWithMemory,
    guidance: Guidance,
    styled: bool,
    *,
    timesteps: int,
) -> Callable[[Array, Array, Any], tuple[Array, Any]]:
    """Returns what `guided` does, of a network that hands a memory from call to call.

    Args:
        denoise_branches: `(x, t, the branches, memory) -> (out, memory)`; see `guided` for these
            and for the others.
        guidance: see above.
        styled: see above.
        timesteps: see above.
    """
    names = branches(guidance, styled)

    def steered(x, t, memory):
        out, memory = denoise_branches(x, t, names, memory)
        parts = rearrange(out, "(k b) ... -> k b ...", k=len(names))
        return combine(guidance, dict(zip(names, parts, strict=True)), t / timesteps), memory

    def plain(x, t, memory):
        out, memory = denoise_branches(x, t, ("full",), memory)
        return out.astype(jnp.float32), memory

    def denoise(x: Float[Array, "b ..."], t: Float[Array, " b"], memory: Any):
        if guidance.always:
            return steered(x, t, memory)
        guides = jnp.any(_inside(guidance, t / timesteps))
        return jax.lax.cond(guides, steered, plain, x, t, memory)

    return denoise


def running(
    guidance: Guidance, styled: bool, t_fraction: Float[np.ndarray, " n"]
) -> list[tuple[Branch, ...]]:
    """Returns the branches that run at each of several steps, at t / timesteps."""
    names, inside = branches(guidance, styled), _inside(guidance, t_fraction)
    return [names if guides else ("full",) for guides in inside]
