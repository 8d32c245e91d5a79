"""What an operation is for, by the names of the modules it is done in."""

import re
from collections.abc import Callable

from stylecrafter_jax.config import UNetConfig
from stylecrafter_jax.models.unet_video import unet_plan

_LAYER = re.compile(r"((?:input|output)_blocks\.\d+\.\d+|middle_block\.\d+|init_attn\.0)")
_NORM = re.compile(r"/(?:norm[123]?|(?:in_layers|out_layers|out)\.0)(?:[/.]|$)")
# Modules outside the UNet; the first that is found.
_MODULES = (
    (re.compile("FlaxCLIP"), "CLIP towers"),
    (re.compile(r"\b(?:En|De)code\b"), "autoencoder"),
    (re.compile(r"\b(?:StyleTransformer|ScaleEncoder)\b"), "style tokens and scales"),
)


def part_label(config: UNetConfig) -> Callable[[str], str]:
    """Returns a function from an operation's path of module names to what it is for.

    What XLA fuses goes by the name of one of the operations in it: a norm may count as the
    convolution that it feeds.
    """
    kinds = {layer.name: layer.kind for layer in unet_plan(config).layers}

    def label(path: str) -> str:
        for pattern, name in _MODULES:
            if pattern.search(path):
                return name
        if "UNetVideo" not in path:
            return "the rest"
        if _NORM.search(path):
            return "norms"
        layer = _LAYER.search(path)
        kind = kinds.get(layer[1], "temporal") if layer else "conv"
        if kind not in ("spatial", "temporal"):
            return "convolutions"
        if "/ff/" in path:
            return "feed-forward"
        if "/attn" not in path:
            return "transformers' in and out"
        if kind == "temporal":
            return "temporal attention"
        return "spatial self-attention" if "/attn1" in path else "dual cross-attention"

    return label
