"""Flax CLIP as frozen encoders: text features, and image tokens for the style.

The only module that imports Flax CLIP. The towers run in float32: they run once per sample, and
Flax CLIP's softmax follows its compute dtype.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from transformers import CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.modeling_flax_clip import (
    FlaxCLIPEncoderLayer,
    FlaxCLIPTextTransformer,
    FlaxCLIPVisionTransformer,
)

from stylecrafter_jax.config import CLIPConfig

TOKEN_STD = 0.3


def text_tower(config: CLIPConfig, layers: int) -> FlaxCLIPTextTransformer:
    """Returns the text tower cut after `layers` blocks, its final norm included."""
    text = config.text
    return FlaxCLIPTextTransformer(
        CLIPTextConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.width,
            intermediate_size=4 * text.width,
            projection_dim=config.embed_dim,
            num_hidden_layers=layers,
            num_attention_heads=text.heads,
            max_position_embeddings=text.context_length,
            hidden_act="quick_gelu" if config.quick_gelu else "gelu",
            layer_norm_eps=1e-5,
        )
    )


def vision_tower(config: CLIPConfig) -> FlaxCLIPVisionTransformer:
    """Returns the image tower."""
    return FlaxCLIPVisionTransformer(_vision_config(config))


def encoder_layer(config: CLIPConfig) -> FlaxCLIPEncoderLayer:
    """Returns one block of the image tower."""
    return FlaxCLIPEncoderLayer(_vision_config(config))


def _vision_config(config: CLIPConfig) -> CLIPVisionConfig:
    vision = config.vision
    return CLIPVisionConfig(
        hidden_size=vision.width,
        intermediate_size=int(vision.mlp_ratio * vision.width),
        projection_dim=config.embed_dim,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.width // vision.head_width,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        hidden_act="quick_gelu" if config.quick_gelu else "gelu",
        layer_norm_eps=1e-5,
    )


def encode_text(
    params: Mapping[str, Any], config: CLIPConfig, ids: Int[Array, "b l"]
) -> Float[Array, "b l d"]:
    """Returns the text features of all positions, those after the end token included.

    They are the final norm of the blocks up to the one `config.layer` names.

    Source: StyleCrafter, lvdm/modules/encoders/condition.py, FrozenOpenCLIPEmbedder.
    """
    layers = config.text.layers - (1 if config.layer == "penultimate" else 0)
    return _text_features(params, config, ids, layers)


def _text_features(
    params: Mapping[str, Any], config: CLIPConfig, ids: Int[Array, "b l"], layers: int
) -> Float[Array, "b l d"]:
    mask = jnp.ones_like(ids)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    tower: Any = text_tower(config, layers)
    with jax.numpy_rank_promotion("allow"):  # Flax CLIP relies on it
        out = tower.apply({"params": params["text_model"]}, ids, mask, positions)
    return out.last_hidden_state


def embed_text(
    params: Mapping[str, Any], config: CLIPConfig, ids: Int[Array, "b l"], end: Int[Array, ""]
) -> Float[Array, "b d"]:
    """Returns the prompts in the space that CLIP shares with images, of length 1.

    It is the whole tower's final norm at the first end token, projected. The original takes the
    place of the largest id, which is the same for its vocabulary and wrong for others.

    Args:
        params: nested parameters of the text encoder.
        config: the towers.
        ids: what the tokenizer returned.
        end: the tokenizer's end id; every row holds it.

    Source: open_clip, src/open_clip/model.py, CLIP.encode_text with normalize=True.
    """
    features = _text_features(params, config, ids, config.text.layers)
    place = jnp.argmax(ids == end, axis=1)
    pooled = jnp.take_along_axis(features, place[:, None, None], axis=1)[:, 0]  # b d
    return _normalised(pooled @ params["text_projection"]["kernel"])


def encode_image(
    params: Mapping[str, Any], config: CLIPConfig, pixels: Float[Array, "b h w 3"]
) -> Float[Array, "b n c"]:
    """Returns the image tokens: the class token after the last norm, the patches without it.

    Args:
        params: nested parameters of the image encoder.
        config: the towers.
        pixels: normalised pixels of the tower's own size.

    Source: StyleCrafter, lvdm/modules/encoders/condition.py, FrozenOpenCLIPImageEmbedder with
    only_cls=False, use_proj=False.
    """
    pooled, hidden = _image_features(params, config, pixels)
    return jnp.concatenate([pooled[:, None], hidden[:, 1:]], axis=1)


def _image_features(
    params: Mapping[str, Any], config: CLIPConfig, pixels: Float[Array, "b h w 3"]
) -> tuple[Float[Array, "b c"], Float[Array, "b n c"]]:
    tower: Any = vision_tower(config)
    with jax.numpy_rank_promotion("allow"):
        out = tower.apply({"params": params["vision_model"]}, pixels)
    return out.pooler_output, out.last_hidden_state


def embed_image(
    params: Mapping[str, Any], config: CLIPConfig, pixels: Float[Array, "b h w 3"]
) -> Float[Array, "b d"]:
    """Returns images in the space that CLIP shares with texts, of length 1.

    It is the class token after the last norm, projected.

    Args:
        params: nested parameters of the image encoder.
        config: the towers.
        pixels: normalised pixels of the tower's own size.

    Source: open_clip, src/open_clip/model.py, CLIP.encode_image with normalize=True.
    """
    pooled, _ = _image_features(params, config, pixels)
    return _normalised(pooled @ params["visual_projection"]["kernel"])


def _normalised(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def init_params(config: CLIPConfig, key: Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns freshly initialised nested parameters of the text and the image encoder.

    Each holds its tower and its projection into the common space; the text's also `logit_scale`.
    Token embeddings start `TOKEN_STD` large: what training pictures never show, such as the words
    of a motion, keeps the code it began with, and shorter codes drown in what the layers add.
    """
    text, vision = config.text, config.vision
    keys = jax.random.split(key, 4)
    ids = jnp.zeros((1, text.context_length), jnp.int32)
    positions = jnp.arange(text.context_length)[None]
    pixels = jnp.zeros((1, vision.image_size, vision.image_size, 3))
    with jax.numpy_rank_promotion("allow"):
        text_model: Any = text_tower(config, text.layers).init(
            keys[0], ids, jnp.ones_like(ids), positions
        )
        vision_model = vision_tower(config).init(keys[1], pixels)
    tokens = text_model["params"]["embeddings"]["token_embedding"]
    tokens["embedding"] *= TOKEN_STD / jnp.std(tokens["embedding"])
    normal = jax.nn.initializers.normal(0.02)
    text_encoder = {
        "text_model": text_model["params"],
        "text_projection": {"kernel": normal(keys[2], (text.width, config.embed_dim))},
        "logit_scale": jnp.log(jnp.float32(1 / 0.07)),
    }
    image_encoder = {
        "vision_model": vision_model["params"],
        "visual_projection": {"kernel": normal(keys[3], (vision.width, config.embed_dim))},
    }
    return text_encoder, image_encoder
