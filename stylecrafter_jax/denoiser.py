"""A batch's encoded prompts and styles to the guided denoiser that a sampler asks."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from stylecrafter_jax.diffusion.guidance import branches, guided
from stylecrafter_jax.diffusion.samplers import Denoise
from stylecrafter_jax.diffusion.schedules import NoiseSchedule
from stylecrafter_jax.models.attention import ContextKV
from stylecrafter_jax.models.networks import Networks
from stylecrafter_jax.models.unet_video import Mode
from stylecrafter_jax.options import Resolved


class Condition(NamedTuple):
    """What the UNet is given of a batch of requests, text and style both encoded."""

    text: Float[Array, "b l d"]
    uncond: Float[Array, "b l d"]
    style: Float[Array, "b s d"] | None
    style_scale: Float[Array, "b layers"] | None


class Prepared(NamedTuple):
    """What all steps are given.

    Attributes:
        text: tokens of all branches.
        style: tokens of the first branch, if it has a style.
        style_scale: factor on its style branch.
        kv: keys and values of both, of every layer.
        timesteps: of the steps.
        embeddings: of every timestep, for every residual block.
    """

    text: Float[Array, "n l d"]
    style: Float[Array, "b s d"] | None
    style_scale: Float[Array, "b layers"] | None
    kv: list[ContextKV]
    timesteps: Float[Array, " s"]
    embeddings: list[Float[Array, "s _rows _k"]]


def make_denoiser(
    networks: Networks, schedule: NoiseSchedule, options: Resolved, *, styled: bool
) -> tuple[Callable[..., Prepared], Callable[..., Denoise]]:
    """Returns two functions, for before the first step and for the steps.

    Returns:
        (unet parameters, condition, timesteps, fps) -> everything that does not depend on x.
        (unet parameters, that) -> the guided `denoise(x, t)`, for these timesteps.
    """
    mode: Mode = "image" if options.image else "video"
    names = branches(options.guidance, styled)

    def prepare(unet, condition: Condition, timesteps, fps) -> Prepared:
        style, scale = condition.style, condition.style_scale
        if "full" not in names:
            style = scale = None
        text = {"full": condition.text, "text": condition.text, "uncond": condition.uncond}
        all_text = jnp.concatenate([text[name] for name in names])
        kv = networks.context_kv(unet, all_text, style)
        embeddings = networks.embeddings(unet, timesteps, fps)
        return Prepared(all_text, style, scale, kv, timesteps, embeddings)

    def denoiser(unet, given: Prepared):
        all_text, style, scale, all_kv, timesteps, embeddings = given
        count = all_text.shape[0] // len(names)
        rows = {name: slice(i * count, (i + 1) * count) for i, name in enumerate(names)}

        def denoise_branches(x, t, running):
            def pick(y):
                return jnp.concatenate([y[rows[name]] for name in running])

            with_style = style is not None and "full" in running
            step = jnp.argmin(jnp.abs(timesteps - t[0]))
            kv = [
                layer._replace(k=pick(layer.k), v=pick(layer.v))
                if with_style
                else ContextKV(pick(layer.k), pick(layer.v))
                for layer in all_kv
            ]
            return networks.unet(
                unet,
                x,
                t,
                pick(all_text),
                style if with_style else None,
                scale if with_style else None,
                mode=mode,
                kv=kv,
                embeddings=[table[step] for table in embeddings],
            )

        return guided(
            denoise_branches,
            options.guidance,
            styled=styled,
            timesteps=schedule.timesteps,
        )

    return prepare, denoiser
