"""The networks of one model as plain functions over flat parameters; outside, no one sees Linen."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from stylecrafter_jax import params as weights
from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.kernels.dispatch import Implementation
from stylecrafter_jax.models import clip
from stylecrafter_jax.models.attention import ContextKV
from stylecrafter_jax.models.style import ScaleEncoder, StyleTransformer
from stylecrafter_jax.models.unet_video import (
    Remat,
    UNetVideo,
    unet_context_kv,
    unet_embeddings,
)
from stylecrafter_jax.models.vae_image import Decode, Encode, posterior
from stylecrafter_jax.params import Params


class Networks(NamedTuple):
    """Pure functions of flat parameters (full names); none draws random numbers.

    Attributes:
        unet: (params, x, t, text, style, style_scale, *, fps, features, mode, kv, embeddings) ->
            prediction; see `UNetVideo`.
        context_kv: (params, text, style) -> keys and values for `unet(kv=...)`.
        embeddings: (params, timesteps, fps) -> of every timestep what `unet(embeddings=...)` takes.
        encode_text: (params, ids) -> text tokens.
        encode_image: (params, pixels) -> image tokens; pixels as the tower wants them.
        embed_text: (params, ids, end id) -> one vector per prompt, in the space shared with images.
        embed_image: (params, pixels) -> one vector per image, in the space shared with texts.
        style_tokens: (params, image tokens, weights per token or None) -> style tokens.
        style_scale: (params, style tokens, text tokens, style weight) -> factor on the style branch
            per video and layer: weight * adapter.scale * (1 + predicted offset).
        vae_encode: (params, pixels in [-1, 1]) -> mean, log-variance of unscaled latents.
        vae_decode: (params, unscaled latents) -> pixels.
    """

    unet: Callable[..., Array]
    context_kv: Callable[..., list[ContextKV]]
    embeddings: Callable[..., dict[str, Array]]
    encode_text: Callable[[Params, Array], Array]
    encode_image: Callable[[Params, Array], Array]
    embed_text: Callable[[Params, Array, Array], Array]
    embed_image: Callable[[Params, Array], Array]
    style_tokens: Callable[..., Array]
    style_scale: Callable[..., Array]
    vae_encode: Callable[[Params, Array], tuple[Array, Array]]
    vae_decode: Callable[[Params, Array], Array]


@functools.lru_cache(maxsize=16)
def networks(
    config: ModelConfig,
    dtype: DTypeLike = jnp.float32,
    remat: Remat = "none",
    impl: Implementation | None = None,
) -> Networks:
    """Returns the networks of `config`.

    Args:
        config: the model.
        dtype: compute dtype of UNet, adapter and autoencoder. Softmax and norm statistics are
            float32 and so are the CLIP towers.
        remat: what the UNet computes again in the backward pass; see `REMAT_POLICIES`.
        impl: of the UNet's fused attentions; None takes the fastest.
    """
    adapter, layers = config.adapter, config.unet.dual_layers
    unet_module = UNetVideo(
        config=config.unet,
        fusion=adapter.fusion,
        use_norm=adapter.use_norm,
        remat=remat,
        dtype=dtype,
        impl=impl,
    )

    def unet(params, *args, **kwargs):
        return _apply(unet_module, weights.part(params, "unet"), *args, **kwargs)

    def context_kv(params, text, style=None):
        style = None if style is None else style.astype(dtype)
        return unet_context_kv(weights.part(params, "unet"), config.unet, text.astype(dtype), style)

    def embeddings(params, t, fps=None):
        return unet_embeddings(weights.part(params, "unet"), config.unet, t, fps, dtype)

    def encode_text(params, ids: Int[Array, "b l"]):
        return clip.encode_text(
            weights.nest(weights.part(params, "text_encoder")), config.clip, ids
        )

    def encode_image(params, pixels: Float[Array, "b h w 3"]):
        tree = weights.nest(weights.part(params, "image_encoder"))
        return clip.encode_image(tree, config.clip, pixels)

    def embed_text(params, ids: Int[Array, "b l"], end: Int[Array, ""]):
        tree = weights.nest(weights.part(params, "text_encoder"))
        return clip.embed_text(tree, config.clip, ids, end)

    def embed_image(params, pixels: Float[Array, "b h w 3"]):
        tree = weights.nest(weights.part(params, "image_encoder"))
        return clip.embed_image(tree, config.clip, pixels)

    def style_tokens(params, tokens, token_weights=None):
        module = StyleTransformer(config=adapter.image_context, dtype=dtype)
        own = weights.part(params, "adapter/image_context_model")
        return _apply(module, own, tokens, token_weights)

    def style_scale(params, style, text, weight=1.0):
        factor = jnp.full((style.shape[0], 1), weight * adapter.scale, jnp.float32)
        if adapter.scale_predictor is None:
            return jnp.broadcast_to(factor, (style.shape[0], layers))
        module = ScaleEncoder(config=adapter.scale_predictor, dtype=dtype)
        own = weights.part(params, "adapter/scale_predictor")
        offset = _apply(module, own, style, text)
        return factor * (1.0 + offset[..., 0].astype(jnp.float32))

    def vae_encode(params, x):
        module = Encode(config=config.vae, dtype=dtype)
        return posterior(_apply(module, weights.part(params, "vae"), x))

    def vae_decode(params, z):
        return _apply(Decode(config=config.vae, dtype=dtype), weights.part(params, "vae"), z)

    return Networks(
        unet,
        context_kv,
        embeddings,
        encode_text,
        encode_image,
        embed_text,
        embed_image,
        style_tokens,
        style_scale,
        vae_encode,
        vae_decode,
    )


def _apply(module: nn.Module, params: Params, *args: Any, **kwargs: Any) -> Any:
    return module.apply({"params": weights.nest(params)}, *args, **kwargs)


def parameter_shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the name and shape of every parameter of the model, as float32."""
    return dict(_shapes(config))


@functools.lru_cache(maxsize=16)
def _shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns them for `parameter_shapes`: tracing all networks takes seconds."""
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    return {name: jax.ShapeDtypeStruct(value.shape, jnp.float32) for name, value in shapes.items()}


def init_params(config: ModelConfig, key: Array) -> Params:
    """Returns freshly initialised parameters of the whole model."""
    keys = iter(jax.random.split(key, 8))
    adapter, text_width = config.adapter, config.unet.context_dim
    text, style = jnp.zeros((1, 2, text_width)), jnp.zeros((1, 1, text_width))
    grid = config.unet.downsampling
    latents = jnp.zeros((1, 1, grid, grid, config.unet.in_channels))
    unet = UNetVideo(config=config.unet, fusion=adapter.fusion, use_norm=adapter.use_norm)
    pixels = jnp.zeros((1, config.vae.downsampling, config.vae.downsampling, 3))
    z = jnp.zeros((1, 1, 1, config.vae.embed_dim))
    image_tokens = jnp.zeros((1, 1, adapter.image_context.in_dim))
    flat = {}

    def add(prefix, module, *args):
        flat.update(weights.flatten(module.init(next(keys), *args)["params"], prefix))

    add("unet", unet, latents, jnp.zeros((1,)), text, style)
    add("vae", Encode(config=config.vae), pixels)
    add("vae", Decode(config=config.vae), z)
    add("adapter/image_context_model", StyleTransformer(config=adapter.image_context), image_tokens)
    if adapter.scale_predictor is not None:
        add("adapter/scale_predictor", ScaleEncoder(config=adapter.scale_predictor), style, text)
    text_encoder, image_encoder = clip.init_params(config.clip, next(keys))
    flat |= weights.flatten(text_encoder, "text_encoder")
    flat |= weights.flatten(image_encoder, "image_encoder")
    return flat
