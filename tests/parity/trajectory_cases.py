"""Answers to the cases that combine networks: sampling, the whole pipeline, training losses."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from stylecrafter_jax import params as weights
from stylecrafter_jax.autoencode import decode_frames
from stylecrafter_jax.checkpoints.stylecrafter import entry
from stylecrafter_jax.config import ModelConfig, UNetConfig
from stylecrafter_jax.diffusion.guidance import Guidance, guided
from stylecrafter_jax.diffusion.losses import denoising_loss, training_target
from stylecrafter_jax.diffusion.samplers import Trajectory, make_plan, sample
from stylecrafter_jax.diffusion.schedules import add_noise, make_schedule
from stylecrafter_jax.media.images import clip_pixels, load_style_image
from stylecrafter_jax.models.networks import Networks, networks, parameter_shapes
from stylecrafter_jax.models.unet_video import dual_attention_names
from stylecrafter_jax.params import Params
from tests.parity import original
from tests.parity.case import Case, Check, compare
from tests.parity.model_cases import (
    VIDEO_IN,
    VIDEO_OUT,
    layer_scale,
    predicted_scalar,
    style_condition,
    styled_unet,
)

STEPS_IN, STEPS_OUT = "s b c f h w -> s b f h w c", "s b f h w c -> s b c f h w"
SAMPLER_INPUTS = ("context", "uncond_context", "style_tokens", "append_to_context", "scale_scalar")


def ddim(case: Case) -> dict[str, Any]:
    nets, params, config = styled_unet(case)
    style, scalar = style_condition(case, params, config, nets)
    scale = None if style is None else original_scale(style, scalar, config)
    fps = case.input("fps")
    path, plan = _sample(
        case, nets, params, config, style=style, scale=scale, mode=case.config["mode"],
        text=case.input("context"), uncond=case.input("uncond_context"), fps=fps,
    )  # fmt: skip
    answers = {
        "x": rearrange(path.x, STEPS_OUT),
        "pred_x0": rearrange(path.pred_x0, STEPS_OUT),
        "timesteps": plan.timesteps,
        "append_to_context": style,
        "scale_scalar": scalar,
    }
    return {name: answers[name] for name in case.outputs}


def original_scale(style: Any, scalar: Any, config: ModelConfig) -> Any:
    """Returns the factor per row and layer; the adapter's constant where nothing predicts it."""
    if scalar is not None:
        return layer_scale(scalar, config)
    layers = len(dual_attention_names(config.unet))
    return jnp.full((len(style), layers), config.adapter.scale)


def _sample(
    case: Case,
    nets: Networks,
    params: Params,
    config: ModelConfig,
    *,
    style: Any,
    scale: Any,
    text: Any,
    uncond: Any,
    mode: str,
    fps: Any = None,
) -> tuple[Trajectory, Any]:
    """Runs a case's DDIM sampling from its noise, under its guidance."""
    values = case.config
    text_weight = values["unconditional_guidance_scale"]
    style_weight = values.get("unconditional_guidance_scale_style")
    # To the original a text weight of 1 means no guidance at all, whatever the style's is.
    unguided = text_weight == 1.0
    guidance = Guidance(text=text_weight, style=None if unguided else style_weight)
    x = jnp.asarray(rearrange(case.input("x_T"), VIDEO_IN))
    noise = case.input("noise")
    plan = make_plan(
        "ddim",
        make_schedule(config.schedule),
        values["ddim_steps"],
        eta=values["ddim_eta"],
        use_scale=style_weight is None,
    )
    contexts = {"full": text, "text": text, "uncond": uncond}

    def denoise_branches(x, t, running):
        with_style = style is not None and "full" in running
        tokens = jnp.concatenate([jnp.asarray(contexts[name]) for name in running])
        rate = None
        if fps is not None:
            rate = jnp.broadcast_to(jnp.float32(fps), (text.shape[0],))
        return nets.unet(
            params,
            x,
            t,
            tokens,
            style if with_style else None,
            scale if with_style else None,
            fps=rate,
            mode=mode,
        )

    denoise = guided(
        denoise_branches, guidance, styled=style is not None, timesteps=config.schedule.timesteps
    )
    if noise is None:
        noise = np.zeros((plan.steps, *case.input("x_T").shape), np.float32)
    noise = jnp.asarray(rearrange(noise, STEPS_IN))
    run = jax.jit(lambda x, noise: sample(denoise, x, plan, noise=noise, trajectory=True))
    _, path = run(x, noise)
    return path, plan


def pipeline(case: Case) -> dict[str, Any]:
    values = case.config
    config = original.model_config(
        original.known(UNetConfig, values["unet"]),
        original.adapter_config(values["adapter"]),
        original.schedule_config(values),
        original.vae_config(values["first_stage"]),
        original.clip_config(values["clip"]),
    )
    state = case.state_dict()
    nets = networks(config)
    params = original.fill(parameter_shapes(config), state, whole=True)
    features = jax.jit(nets.encode_text)(params, jnp.asarray(case.input("tokens")))
    text, uncond = features[:1], features[1:]
    images = np.stack([load_style_image(file) for file in reference_files(case)])
    pixels = clip_pixels(images, size=config.clip.vision.image_size)
    tokens = jax.jit(nets.encode_image)(params, pixels)
    style = jax.jit(nets.style_tokens)(params, rearrange(tokens, "r n c -> 1 (r n) c"))
    scalar = predicted_scalar(params, config, style, text)
    path, _ = _sample(
        case, nets, params, config, style=style, scale=original_scale(style, scalar, config),
        text=text, uncond=uncond, mode=values.get("mode", "video"),
    )  # fmt: skip
    video = decode_frames(
        functools.partial(jax.jit(nets.vae_decode), params),
        path.x[-1],
        scale_factor=config.vae.scale_factor,
        factor=config.vae.downsampling,
    )
    answers = {
        "context": text,
        "uncond_context": uncond,
        "style_tokens": tokens,
        "append_to_context": style,
        "scale_scalar": scalar,
        "latents": rearrange(path.x, STEPS_OUT),
        "video": rearrange(video, VIDEO_OUT),
    }
    return {name: answers[name] for name in case.outputs if name in answers}


def reference_files(case: Case) -> list[Path]:
    """Returns a pipeline case's style images: its own, else those of the case clip_preprocess."""
    shared = Path(__file__).parents[3] / "shared/parity/videocrafter"
    for folder in (case.path, case.path.parent / "clip_preprocess", shared / "clip_preprocess"):
        if files := sorted(folder.glob("image_*.png")):
            return files
    raise FileNotFoundError(f"{case.path.name} has no style images, nor has clip_preprocess")


def training_loss(case: Case) -> list[Check]:
    """Compares loss, prediction, and the gradient of everything the stage trains."""
    nets, params, config = styled_unet(case)
    schedule = make_schedule(config.schedule)
    x0, noise = (jnp.asarray(rearrange(case.input(n), VIDEO_IN)) for n in ("x0", "noise"))
    t = jnp.asarray(case.input("timesteps"))
    text = jnp.asarray(case.input("context"))
    pattern = weights.ADAPTER if case.config["stage"] == 1 else weights.TEMPORAL
    trainable = weights.select(params, pattern)
    frozen = {name: value for name, value in params.items() if name not in trainable}
    x_noisy = add_noise(schedule, x0, noise, t)

    def loss(trainable):
        merged = {**frozen, **trainable}
        style, scalar = style_condition(case, merged, config, nets)
        scale = None if style is None else original_scale(style, scalar, config)
        eps = nets.unet(
            merged, x_noisy, t.astype(jnp.float32), text, style, scale, mode=case.config["mode"]
        )
        return denoising_loss(eps, training_target(schedule, x0, noise, t)), eps

    (value, eps), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)
    rule = case.info["tolerance"]
    return [
        compare("loss", value, case.outputs["loss"], atol=0.0, rtol=rule["loss_rtol"]),
        compare("eps", rearrange(eps, VIDEO_OUT), case.outputs["eps"], atol=1e-4, rtol=1e-4),
        compare(
            "x_noisy", rearrange(x_noisy, VIDEO_OUT), case.outputs["x_noisy"], atol=1e-6, rtol=1e-6
        ),
        *_gradient_checks(case, _to_original(grads), rule),
    ]


def _to_original(grads: Params) -> dict[str, np.ndarray]:
    """Returns gradients by the case's names and in its layout."""
    found = {}
    for name, value in grads.items():
        place = entry(name)
        prefix = next(p for p in original.PREFIXES if place.name.startswith(p))
        array = np.asarray(value)
        array = np.moveaxis(array, (-1, -2), (0, 1)) if place.kernel else array
        found[place.name.removeprefix(prefix)] = array
    return found


def _gradient_checks(case: Case, grads: dict[str, np.ndarray], rule: dict) -> list[Check]:
    names = case.info["trainable_parameters"]
    if set(names) != set(grads):
        different = sorted(set(names) ^ set(grads))
        note = f"trainable differ: {len(different)}, e.g. {different[:3]}"
        return [Check("trainable_parameters", np.inf, np.inf, note, False)]
    checks = []
    norms = np.array([np.linalg.norm(grads[name].astype(np.float64)) for name in names])
    theirs = case.outputs["grad_norms"].astype(np.float64)
    excess = np.abs(norms - theirs) - rule["grad_norm_rtol"] * np.abs(theirs)
    tolerance = f"{rule['grad_norm_atol']:g}+{rule['grad_norm_rtol']:g}*norm"
    checks.append(
        Check(
            f"grad_norms[{names[int(np.argmax(excess))]}]",
            float(np.max(np.abs(norms - theirs))),
            float(np.max(np.abs(norms - theirs) / np.maximum(theirs, 1e-3 * theirs.max()))),
            tolerance,
            bool(np.all(excess <= rule["grad_norm_atol"])),
        )
    )
    for array, name in case.info.get("grad_arrays", {}).items():
        theirs = case.arrays[array]
        check = compare(
            f"grad {name}", grads[name], theirs, atol=0.0, rtol=rule["grad_atol_relative_to_max"]
        )
        checks.append(check)
    return checks
