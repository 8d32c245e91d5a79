"""Answers to the cases that run one network: our value for every array the case has."""

import dataclasses
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from stylecrafter_jax import params as weights
from stylecrafter_jax.autoencode import decode_frames, encode_frames
from stylecrafter_jax.config import (
    CLIPConfig,
    ScaleEncoderConfig,
    StyleTransformerConfig,
    UNetConfig,
    VisionTowerConfig,
)
from stylecrafter_jax.media.images import clip_pixels
from stylecrafter_jax.models import clip
from stylecrafter_jax.models.layers import (
    EmbeddingMLP,
    GroupNorm,
    ResBlock,
    TemporalConv,
    timestep_embedding,
)
from stylecrafter_jax.models.networks import Networks, networks, parameter_shapes
from stylecrafter_jax.models.style import ScaleEncoder, StyleTransformer
from stylecrafter_jax.models.transformer_blocks import (
    SpatialBlock,
    SpatialTransformer,
    TemporalTransformer,
)
from stylecrafter_jax.models.unet_video import dual_attention_names
from stylecrafter_jax.models.vae_image import AttnBlock, Decode, Encode, ResnetBlock, posterior
from stylecrafter_jax.params import Params
from tests.parity import original
from tests.parity.case import Case

VIDEO_IN, VIDEO_OUT = "b c f h w -> b f h w c", "b f h w c -> b c f h w"
IMAGE_IN, IMAGE_OUT = "b c h w -> b h w c", "b h w c -> b c h w"


def styled_unet(case: Case) -> tuple[Networks, Params, Any]:
    """Returns the networks, parameters and config of a case with a UNet and perhaps an adapter."""
    adapter = case.config.get("adapter")
    config = original.model_config(
        original.known(UNetConfig, case.config["unet"]),
        None if adapter is None else original.adapter_config(adapter),
        original.schedule_config(case.config),
    )
    pattern = r"^unet/|^adapter/"
    names = weights.select(parameter_shapes(config), pattern)
    if adapter is None or case.input("style_tokens") is None:
        names = {k: v for k, v in names.items() if not re.search(weights.ADAPTER, k)}
    return networks(config), original.fill(names, case.state_dict()), config


def style_condition(case: Case, params: Params, config: Any, nets: Networks):
    """Returns style tokens and the raw output of the scale predictor (None where it has none)."""
    tokens = case.input("style_tokens")
    if tokens is None:
        return None, None
    if tokens.ndim == 4:
        tokens = rearrange(tokens, "b r n d -> b (r n) d")
    style = jax.jit(nets.style_tokens)(params, jnp.asarray(tokens))
    return style, predicted_scalar(params, config, style, jnp.asarray(case.input("context")))


def predicted_scalar(params: Params, config: Any, style: jax.Array, text: jax.Array) -> Any:
    """Returns the raw output of the scale predictor, None where the adapter has none."""
    predictor = config.adapter.scale_predictor
    if predictor is None:
        return None
    own = {"params": weights.nest(weights.part(params, "adapter/scale_predictor"))}
    return jax.jit(ScaleEncoder(config=predictor).apply)(own, style, text)


def layer_scale(scalar: Any, config: Any) -> Any:
    """Returns the factor per row and layer that the original applies for a scale_scalar."""
    return config.adapter.scale * (1.0 + scalar[..., 0])


def unet(case: Case) -> dict[str, Any]:
    nets, params, config = styled_unet(case)
    x = rearrange(jnp.asarray(case.input("x")), VIDEO_IN)
    t, text = jnp.float32(case.input("timesteps")), jnp.asarray(case.input("context"))
    frames, batch = x.shape[1], x.shape[0]
    mode = case.config["mode"]
    fps = case.input("fps")
    fps = None if fps is None else jnp.broadcast_to(jnp.float32(fps), (batch,))
    if text.shape[0] != batch:  # images on the frame axis of one item, each with its own text
        x, t = rearrange(x, "b f h w c -> (b f) 1 h w c"), jnp.repeat(t, frames)
        fps = None if fps is None else jnp.repeat(fps, frames)
    style, scalar = style_condition(case, params, config, nets)
    run = jax.jit(functools.partial(nets.unet, mode=mode))

    def predict(style=None, scale=None, fps=fps):
        y = run(params, x, t, text, style, scale, fps=fps)
        return rearrange(y, "(b g) f h w c -> b c (g f) h w", b=batch)

    layers = len(dual_attention_names(config.unet))
    ones = None if style is None else jnp.full((len(style), layers), config.adapter.scale)
    scale = ones if scalar is None else layer_scale(scalar, config)
    answers = {
        "append_to_context": lambda: style,
        "scale_scalar": lambda: scalar,
        "y": lambda: predict(style, scale),
        "y_no_style": lambda: predict(),
        "y_no_scale": lambda: predict(style, ones),
        "y_default_fps": lambda: predict(style, scale, fps=None),
    }
    for name in case.outputs:
        if match := re.fullmatch(r"y_fps(\d+)", name):
            rate = jnp.full((x.shape[0],), float(match[1]))
            answers[name] = functools.partial(predict, style, scale, fps=rate)
    answers |= _diagnostics(case, params, config, answers["y"], x, t)
    return {name: answers[name]() for name in case.outputs if name in answers}


def _diagnostics(case: Case, params: Params, config: Any, y, x, t) -> dict[str, Any]:
    """Returns answers to the time embedding's diagnostics, where the case has them."""
    width = config.unet.model_channels
    emb = timestep_embedding(jnp.asarray(t), width)
    own = weights.nest(weights.part(params, "unet/time_embed"))
    return {
        "t_emb": lambda: emb,
        "time_embed": lambda: EmbeddingMLP(width=4 * width).apply({"params": own}, emb),
    }


def _filled(case: Case, module: nn.Module, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
    """Applies a module filled with the case's weights, found by the module's own names."""
    key = jax.random.key(0)
    shapes = jax.eval_shape(functools.partial(module.init, key, **kwargs), *args)
    names = weights.flatten(shapes.get("params", {}))
    own = original.fill_module(names, prefix, case.state_dict())
    run = jax.jit(functools.partial(module.apply, **kwargs))
    return run({"params": weights.nest(own)}, *args)


def style_transformer(case: Case) -> dict[str, Any]:
    module = StyleTransformer(config=original.known(StyleTransformerConfig, case.config))
    answers = {}
    for name, tokens in case.inputs.items():
        if tokens.ndim == 4:
            tokens = rearrange(tokens, "b r n d -> b (r n) d")
        answers[name.replace("x", "y", 1)] = _filled(case, module, jnp.asarray(tokens))
    return answers


def scale_encoder(case: Case) -> dict[str, Any]:
    module = ScaleEncoder(config=original.known(ScaleEncoderConfig, case.config))
    style, text = (jnp.asarray(case.input(name)) for name in ("style", "text"))
    return {"y": _filled(case, module, style, text)}


def vae(case: Case) -> dict[str, Any]:
    config = original.vae_config(case.config)
    encode = functools.partial(_filled, case, Encode(config=config))
    decode = functools.partial(_filled, case, Decode(config=config))
    answers = {}
    if case.input("x") is not None:
        moments = encode(rearrange(jnp.asarray(case.input("x")), IMAGE_IN))
        mean, logvar = posterior(moments)
        answers |= {"moments": moments, "mean": mean, "logvar": logvar}
        if "roundtrip" in case.outputs:
            answers["roundtrip"] = decode(mean)
    if case.input("z") is not None:
        answers["decoded"] = decode(rearrange(jnp.asarray(case.input("z")), IMAGE_IN))
    return {
        name: rearrange(value, IMAGE_OUT) for name, value in answers.items() if name in case.outputs
    }


def vae_video(case: Case) -> dict[str, Any]:
    config = original.vae_config(case.config)
    answers = {}
    if "encoded" in case.outputs:
        noise = case.input("noise")
        encoded = encode_frames(
            lambda x: posterior(_filled(case, Encode(config=config), x)),
            rearrange(case.input("video"), VIDEO_IN),
            scale_factor=config.scale_factor,
            chunk=2,
            noise=None if noise is None else rearrange(noise, VIDEO_IN),
        )
        answers["encoded"] = rearrange(encoded, VIDEO_OUT)
    if "decoded" in case.outputs:
        decoded = decode_frames(
            functools.partial(_filled, case, Decode(config=config)),
            rearrange(jnp.asarray(case.input("latent")), VIDEO_IN),
            scale_factor=config.scale_factor,
            factor=config.downsampling,
            chunk=2,
        )
        answers["decoded"] = rearrange(decoded, VIDEO_OUT)
    return answers


def openclip(case: Case) -> dict[str, Any]:
    config = original.clip_config(case.config)
    answers = {}
    if case.input("tokens") is not None:
        tree = weights.nest(original.clip_params(case.state_dict(), config, "text_encoder"))
        ids = jnp.asarray(case.input("tokens"))
        for layer in ("penultimate", "last"):
            if layer in case.outputs:
                chosen = dataclasses.replace(config, layer=layer)
                answers[layer] = clip.encode_text(tree, chosen, ids)
    if case.input("image_u8") is not None:
        tree = weights.nest(original.clip_params(case.state_dict(), config, "image_encoder"))
        images = case.input("image_u8").astype(np.uint8)
        images = images[None] if images.ndim == 3 else images
        pixels = clip_pixels(images, size=config.vision.image_size)
        tokens = clip.encode_image(tree, config, pixels)
        answers["tokens"] = tokens
        answers["cls_projected"] = tokens[:, :1] @ tree["visual_projection"]["kernel"]
    return {name: value for name, value in answers.items() if name in case.outputs}


def norm_probes(case: Case) -> dict[str, Any]:
    config, f32 = case.config, {"dtype": jnp.float32}
    heads = {"heads": config["spatial"]["n_heads"], "head_dim": config["spatial"]["d_head"]}
    dual = {**heads, "fusion": "dual", "use_norm": True, **f32}
    x = rearrange(jnp.asarray(case.input("x")), "b c h w -> b 1 h w c")
    frame = x[:, 0]
    video = rearrange(jnp.asarray(case.input("video")), VIDEO_IN)
    text = jnp.asarray(case.input("context"))
    tokens = jnp.asarray(case.input("tokens"))
    temporal = config["temporal"]

    def run(name, module, *args):
        return _filled(case, module, *args, prefix=f"{name}.")

    def head():
        norm = GroupNorm(epsilon=1e-5, silu=True)
        conv = nn.Conv(dict(case.manifest)["unet_out.2.weight"][0], (3, 3), padding=1)
        y = _filled(case, norm, x, prefix="unet_out.0.")
        return _filled(case, conv, y, prefix="unet_out.2.")[:, 0]

    def images(y):
        return rearrange(y, IMAGE_OUT)

    answers = {
        "resblock": lambda: images(
            _filled(
                case,
                ResBlock(out_channels=config["resblock"]["out_channels"], **f32),
                x,
                jnp.asarray(case.input("emb")),
                temporal=False,
                prefix="resblock.",
            )[:, 0]
        ),
        "unet_out": lambda: images(head()),
        "temporal_conv": lambda: rearrange(
            run("temporal_conv", TemporalConv(spatial=False, **f32), video), VIDEO_OUT
        ),
        "spatial": lambda: images(
            run(
                "spatial",
                SpatialTransformer(
                    depth=config["spatial"]["depth"],
                    use_linear=config["spatial"]["use_linear"],
                    layer=0,
                    **dual,
                ),
                x,
                text,
            )[:, 0]
        ),
        "temporal": lambda: rearrange(
            run(
                "temporal",
                TemporalTransformer(
                    heads=temporal["n_heads"],
                    head_dim=temporal["d_head"],
                    depth=temporal["depth"],
                    use_linear=temporal["use_linear"],
                    relative=temporal["temporal_length"] if temporal["relative_position"] else None,
                    self_attention_only=temporal["only_self_att"],
                    **f32,
                ),
                video,
            ),
            VIDEO_OUT,
        ),
        "basic": lambda: run(
            "basic", SpatialBlock(**dual), tokens[:, None], text[:2], None, None, None
        )[:, 0],
        "vae_resnet": lambda: images(
            run(
                "vae_resnet",
                ResnetBlock(channels=config["vae_resnet"]["out_channels"], **f32),
                frame,
            )
        ),
        "vae_attn": lambda: images(run("vae_attn", AttnBlock(**f32), frame)),
        "clip_block": lambda: _clip_block(case, tokens),
    }
    return {name: answers[name]() for name in case.outputs}


def _clip_block(case: Case, tokens: jax.Array) -> jax.Array:
    """Runs the block of the Flax CLIP tower that the encoders use, without a mask."""
    config = case.config["clip_block"]
    width, heads = config["d_model"], config["n_head"]
    layer = clip.encoder_layer(
        CLIPConfig(
            vision=VisionTowerConfig(
                width=width, head_width=width // heads, mlp_ratio=config["mlp_ratio"]
            )
        )
    )
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), tokens, None))
    prefix = "image_encoder/vision_model/encoder/layers/0"
    names = weights.flatten(shapes["params"], prefix)
    inner = "visual.transformer.resblocks.0."
    state = {inner + k.removeprefix("clip_block."): v for k, v in case.state_dict().items()}
    own = weights.part(original.fill(names, state), prefix)
    with jax.numpy_rank_promotion("allow"):
        return jax.jit(layer.apply)({"params": weights.nest(own)}, tokens, None)[0]
