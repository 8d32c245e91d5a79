"""The original's state dicts and configs, in our names and our dataclasses."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from stylecrafter_jax import params as weights
from stylecrafter_jax.checkpoints.layout import Entry, dotted, read
from stylecrafter_jax.checkpoints.stylecrafter import IMAGE, TEXT, entry
from stylecrafter_jax.config import (
    AdapterConfig,
    AutoencoderConfig,
    CLIPConfig,
    ModelConfig,
    ScheduleConfig,
    StyleTransformerConfig,
    TextTowerConfig,
    UNetConfig,
    VisionTowerConfig,
)
from stylecrafter_jax.config_json import from_dict, to_dict
from stylecrafter_jax.models import clip

# What the original's constructors take and does not change the result of an evaluation.
NO_EFFECT = {"dropout", "dims", "use_checkpoint", "use_fp16", "module", "target", "use_bf16"}


def known(cls: type, values: Mapping[str, Any], **renamed: Any) -> Any:
    """Builds our config `cls` from the original's constructor arguments."""
    values = {name: value for name, value in values.items() if name not in NO_EFFECT}
    if values.pop("use_image_attention", False):
        raise NotImplementedError("use_image_attention belongs to image-to-video models")
    return from_dict(cls, {**values, **renamed})


def adapter_config(values: Mapping[str, Any]) -> AdapterConfig:
    values = {k: v for k, v in values.items() if k not in ("time_embed_dim", "mid_dim")}
    parts = {
        part: {k: v for k, v in values[part].items() if k not in NO_EFFECT}
        for part in ("image_context", "scale_predictor")
        if values.get(part) is not None
    }
    return known(AdapterConfig, values, **{"scale_predictor": None, **parts})


def vae_config(values: Mapping[str, Any]) -> AutoencoderConfig:
    extra = {k: values[k] for k in ("embed_dim", "scale_factor") if k in values}
    return known(AutoencoderConfig, values["ddconfig"], **extra)


def clip_config(values: Mapping[str, Any]) -> CLIPConfig:
    text, vision = values.get("text_cfg") or {}, values.get("vision_cfg") or {}
    return CLIPConfig(
        embed_dim=values["embed_dim"],
        text=known(TextTowerConfig, text),
        vision=known(VisionTowerConfig, {**{"head_width": 64}, **vision}),
        quick_gelu=values.get("quick_gelu", False),
        layer=values.get("layer", "penultimate"),
    )


def schedule_config(values: Mapping[str, Any]) -> ScheduleConfig:
    names = {field for field in to_dict(ScheduleConfig())}
    own = {k: v for k, v in values.items() if k in names}
    if values.get("parameterization"):
        own["prediction"] = values["parameterization"]
    return from_dict(ScheduleConfig, own)


def model_config(
    unet: UNetConfig,
    adapter: AdapterConfig | None,
    schedule: ScheduleConfig | None = None,
    vae: AutoencoderConfig | None = None,
    clip: CLIPConfig | None = None,
) -> ModelConfig:
    """Returns a whole model around the parts of a case; the rest is as small as it can be."""
    if adapter is None:
        adapter = AdapterConfig(
            image_context=StyleTransformerConfig(in_dim=64, out_dim=unet.context_dim),
            scale_predictor=None,
        )
    if clip is None:
        width = adapter.image_context.in_dim
        clip = CLIPConfig(
            text=TextTowerConfig(width=unet.context_dim, heads=1, layers=1),
            vision=VisionTowerConfig(width=width, head_width=width, layers=1),
        )
    if vae is None:
        vae = AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, embed_dim=unet.in_channels)
    return ModelConfig(
        unet=unet, adapter=adapter, vae=vae, clip=clip, schedule=schedule or ScheduleConfig()
    )


PREFIXES = ("model.diffusion_model.", "adapter.", "first_stage_model.", TEXT, IMAGE)


def fill(
    names: Mapping[str, Any], state_dict: Mapping[str, np.ndarray], *, whole: bool = False
) -> weights.Params:
    """Returns our parameters `names` (full name -> shape) from the original's state dict.

    Args:
        names: what is wanted.
        state_dict: a case's weights; named as in the whole inference model if `whole`, else without
            the prefix of the part.
    """
    filled = {}
    for name, shape in names.items():
        place = entry(name)
        if not whole:
            prefix = next(p for p in PREFIXES if place.name.startswith(p))
            place = place._replace(name=place.name.removeprefix(prefix))
        filled[name] = shaped(name, read(place, state_dict), shape.shape)
    return filled


def fill_module(
    names: Mapping[str, Any], prefix: str, state_dict: Mapping[str, np.ndarray]
) -> weights.Params:
    """Returns the parameters of one module (name inside it -> shape), found below `prefix`."""
    return {
        name: shaped(
            name,
            read(Entry(prefix + _dotted(name), name.split("/")[-1] == "kernel"), state_dict),
            shape.shape,
        )
        for name, shape in names.items()
    }


def _dotted(name: str) -> str:
    return dotted("/" + name)[1:]


def shaped(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if value.shape != shape:
        raise ValueError(f"{name} is {value.shape}, wanted {shape}")
    return value


def clip_params(
    state_dict: Mapping[str, np.ndarray], config: CLIPConfig, part: str
) -> weights.Params:
    """Returns one encoder's parameters, names without the part, from a bare OpenCLIP model."""
    key = jax.random.key(0)
    text, image = jax.eval_shape(lambda: clip.init_params(config, key))
    tree = {"text_encoder": text, "image_encoder": image}[part]
    names = weights.flatten(tree, part)
    return weights.part(fill(names, state_dict), part)
