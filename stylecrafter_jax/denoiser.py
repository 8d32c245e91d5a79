"""A batch's encoded prompts and styles to the guided denoiser that a sampler asks."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from stylecrafter_jax.diffusion.guidance import Branch, branches, guided_with_memory, running
from stylecrafter_jax.diffusion.samplers import DenoiseWithMemory, Plan
from stylecrafter_jax.diffusion.schedules import NoiseSchedule
from stylecrafter_jax.models.attention import ContextKV
from stylecrafter_jax.models.networks import Networks
from stylecrafter_jax.models.unet_video import Mode
from stylecrafter_jax.options import Resolved

Blocks = Literal["planned", "all", "outermost"]


class Condition(NamedTuple):
    """What the UNet is given of a batch of requests, text and style both encoded."""

    text: Float[Array, "b l d"]
    uncond: Float[Array, "b l d"]
    style: Float[Array, "b s d"] | None
    style_scale: Float[Array, "b layers"] | None


class Steps(NamedTuple):
    """What the steps of a plan are told beside the latents.

    Attributes:
        timesteps: of each.
        whole: whether it runs the whole UNet, or takes the inner part from an earlier step.
    """

    timesteps: Float[Array, " s"]
    whole: Bool[Array, " s"]


class Prepared(NamedTuple):
    """What all steps are given.

    Attributes:
        text: tokens of all branches.
        style: tokens of the first branch, if it has a style.
        style_scale: factor on its style branch.
        kv: keys and values of both, of every layer.
        steps: which steps there are.
        embeddings: of every timestep, for every residual block by its name.
    """

    text: Float[Array, "n l d"]
    style: Float[Array, "b s d"] | None
    style_scale: Float[Array, "b layers"] | None
    kv: list[ContextKV]
    steps: Steps
    embeddings: dict[str, Float[Array, "s _rows _k"]]


class Denoiser(NamedTuple):
    """The functions that sampling asks, before its first step and at each.

    Attributes:
        prepare: (unet parameters, condition, steps, fps) -> everything that does not depend on x.
        memory: (unet parameters, prepared, x) -> what the first step remembers: nothing, as zeros.
        denoise: (unet parameters, prepared) -> the guided `denoise(x, t, memory)` for these steps.
    """

    prepare: Callable[..., Prepared]
    memory: Callable[[Any, Prepared, Array], Any]
    denoise: Callable[[Any, Prepared], DenoiseWithMemory]


def steps_of(plan: Plan, schedule: NoiseSchedule, options: Resolved, *, styled: bool) -> Steps:
    """Returns the steps of a plan.

    The whole UNet runs at the first step, at every `cache_interval`-th after it, and wherever other
    branches begin to run; from there the count is anew.
    """
    timesteps = np.asarray(plan.timesteps, np.float32)
    names = running(options.guidance, styled, timesteps / np.float32(schedule.timesteps))
    whole, since = [], 0
    for i, now in enumerate(names):
        changed = i == 0 or now != names[i - 1]
        since = 0 if changed else (since + 1) % options.cache_interval
        whole.append(since == 0)
    return Steps(jnp.asarray(timesteps), jnp.asarray(whole))


def make_denoiser(
    networks: Networks,
    schedule: NoiseSchedule,
    options: Resolved,
    *,
    styled: bool,
    blocks: Blocks = "planned",
) -> Denoiser:
    """Returns the guided denoiser of `options`.

    Args:
        networks: of the model.
        schedule: of the model.
        options: how to generate.
        styled: there are style images.
        blocks: run the blocks that a step is planned to run; or at every step the same, to tell
            what they cost.
    """
    mode: Mode = "image" if options.image else "video"
    names = branches(options.guidance, styled)
    cached = {"outermost": options.cache_blocks} if options.cache_interval > 1 else {}

    def prepare(unet, condition: Condition, steps: Steps, fps) -> Prepared:
        style, scale = condition.style, condition.style_scale
        if "full" not in names:
            style = scale = None
        text = {"full": condition.text, "text": condition.text, "uncond": condition.uncond}
        all_text = jnp.concatenate([text[name] for name in names])
        kv = networks.context_kv(unet, all_text, style)
        embeddings = networks.embeddings(unet, steps.timesteps, fps)
        return Prepared(all_text, style, scale, kv, steps, embeddings)

    def asked(unet, given: Prepared, x, t, some: tuple[Branch, ...], deep=None):
        """Asks the UNet for some of the branches."""
        rows = _rows(given, names, some)
        with_style = given.style is not None and "full" in some
        step = _step(given, t)
        kv = [
            layer._replace(k=layer.k[rows], v=layer.v[rows])
            if with_style
            else ContextKV(layer.k[rows], layer.v[rows])
            for layer in given.kv
        ]
        return networks.unet(
            unet,
            x,
            t,
            given.text[rows],
            given.style if with_style else None,
            given.style_scale if with_style else None,
            mode=mode,
            kv=kv,
            embeddings={name: table[step] for name, table in given.embeddings.items()},
            **cached,
            **({} if deep is None else {"deep": deep[rows]}),
        )

    def memory(unet, given: Prepared, x):
        if not cached:
            return None
        t = jnp.zeros(x.shape[:1], jnp.float32)
        ask = functools.partial(asked, some=names)
        _, deep = jax.eval_shape(ask, unet, given, x, t)
        return jnp.zeros(deep.shape, deep.dtype)

    def denoise(unet, given: Prepared):
        def denoise_branches(x, t, some, deep):
            if not cached:
                return asked(unet, given, x, t, some), None

            def whole(deep):
                out, fresh = asked(unet, given, x, t, some)
                return out, deep.at[_rows(given, names, some)].set(fresh)

            def outermost(deep):
                return asked(unet, given, x, t, some, deep)[0], deep

            if blocks != "planned":
                return (whole if blocks == "all" else outermost)(deep)
            return jax.lax.cond(given.steps.whole[_step(given, t)], whole, outermost, deep)

        return guided_with_memory(
            denoise_branches,
            options.guidance,
            styled=styled,
            timesteps=schedule.timesteps,
        )

    return Denoiser(prepare, memory, denoise)


def _rows(given: Prepared, names: tuple[Branch, ...], some: tuple[Branch, ...]) -> slice:
    """Returns the rows of some branches, which lead the others."""
    assert names[: len(some)] == some, "the branches that run are the first ones"
    return slice(0, len(some) * (given.text.shape[0] // len(names)))


def _step(given: Prepared, t: Float[Array, " b"]) -> Array:
    """Returns the number of the step at a timestep."""
    return jnp.argmin(jnp.abs(given.steps.timesteps - t[0]))
