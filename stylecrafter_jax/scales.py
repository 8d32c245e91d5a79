"""The factors that a model puts on its style branch: one per layer, for prompts and styles.

Source: StyleCrafter (arXiv 2312.00330), Fig. 3: short prompts and rich styles make them large.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from stylecrafter_jax.checkpoints.bundle import Verify, load_bundle
from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.media.images import clip_pixels, load_style_image
from stylecrafter_jax.models.networks import networks, parameter_shapes
from stylecrafter_jax.models.unet_video import dual_attention_names, unet_plan
from stylecrafter_jax.tokenizer import Tokenizer

SIMPLE_WORDS = 8  # of a simple prompt, at most
PARTS = ("adapter", "text_encoder", "image_encoder")
Group = Literal["simple", "long"]


class DualLayer(NamedTuple):
    """A dual cross-attention: its parameters' path, and its latents' grid at the native size."""

    name: str
    height: int
    width: int


class Series(NamedTuple):
    """The factors of one style, over the prompts of one group: mean and deviation per layer."""

    group: Group
    style: str
    mean: list[float]
    std: list[float]


class Scales(NamedTuple):
    """What `measure` finds.

    Attributes:
        layers: the dual cross-attentions, in the order of their factors.
        prompts: those of each group.
        factors: of every style, prompt (in the given order) and layer.
        series: of every group that has prompts and every style.
    """

    layers: list[DualLayer]
    prompts: dict[Group, list[str]]
    factors: Float32[np.ndarray, "styles prompts layers"]
    series: list[Series]


def measure(
    bundle: Path, prompts: Sequence[str], styles: Sequence[Path], *, verify: Verify = "hash"
) -> Scales:
    """Returns the factors of a bundle's model, with a style weight of 1, computed in float32.

    Raises:
        CheckpointError: the bundle is damaged, or has no adapter or encoder.
        ImageError: a style image cannot be read.
        ValueError: the model has no such factors.
    """
    pixels = [load_style_image(path) for path in styles]
    config, params = load_bundle(bundle, expected=parameter_shapes, parts=PARTS, verify=verify)
    if config.adapter.fusion == "attach":
        raise ValueError(f"{bundle} has no scales: its style tokens are attached to the text's")
    tokenizer = Tokenizer.in_bundle(bundle, config.clip.text.context_length)
    layers, nets, params = dual_layers(config), networks(config), jax.device_put(params)

    @jax.jit
    def encode_style(params, image):
        tokens = nets.encode_image(params, clip_pixels(image, config.clip.vision.image_size))
        return nets.style_tokens(params, tokens)

    # One at a time: a list of any length fits into memory.
    encode_text, style_scale = jax.jit(nets.encode_text), jax.jit(nets.style_scale)
    texts = jnp.concatenate([encode_text(params, tokenizer([prompt])) for prompt in prompts])
    factors = []
    for image in pixels:
        style = encode_style(params, image[None])
        style = jnp.broadcast_to(style, (len(prompts), *style.shape[1:]))
        factors.append(np.asarray(style_scale(params, style, texts))[:, : len(layers)])
    return Scales(layers, grouped(prompts), np.stack(factors), series(prompts, styles, factors))


def group_of(prompt: str) -> Group:
    """Returns whether a prompt is simple or long, by its words."""
    return "simple" if len(prompt.split()) <= SIMPLE_WORDS else "long"


def grouped(prompts: Sequence[str]) -> dict[Group, list[str]]:
    """Returns the prompts of each group."""
    groups: dict[Group, list[str]] = {"simple": [], "long": []}
    for prompt in prompts:
        groups[group_of(prompt)].append(prompt)
    return groups


def series(
    prompts: Sequence[str],
    styles: Sequence[Path],
    factors: Sequence[Float32[np.ndarray, "prompts layers"]],
) -> list[Series]:
    """Returns mean and standard deviation (of the population) of every group and style."""
    # A name alone is enough where no other style has it.
    names = [path.name for path in styles]
    labels = [n if names.count(n) == 1 else str(p) for n, p in zip(names, styles, strict=True)]
    found = []
    groups: tuple[Group, ...] = ("simple", "long")
    for group in groups:
        rows = [i for i, prompt in enumerate(prompts) if group_of(prompt) == group]
        for label, values in zip(labels, factors, strict=True):
            if rows:
                own = values[rows].astype(np.float64)
                found.append(Series(group, label, own.mean(0).tolist(), own.std(0).tolist()))
    return found


def dual_layers(config: ModelConfig) -> list[DualLayer]:
    """Returns the dual cross-attentions of a model, in the order of their factors."""
    names, layers = iter(dual_attention_names(config.unet)), []
    factor = config.vae.downsampling
    for layer in unet_plan(config.unet).layers:
        if layer.kind in ("down", "res_down"):
            factor *= 2
        elif layer.kind in ("up", "res_up"):
            factor //= 2
        elif layer.kind == "spatial":
            grid = (config.size.height // factor, config.size.width // factor)
            depth = config.unet.transformer_depth
            layers += [DualLayer(next(names), *grid) for _ in range(depth)]
    return layers
