"""Operations of a full sample: of this code, and of the released order of work.

    python benchmarks/count_flops.py [OUT]

One 16x320x512 video of the full-size model, 50 steps of three-way guidance, and the fast default.
The released programs ask the UNet three times a step, project text and style again for every frame
of every call, predict the scales again at every step, and convolve after doubling the pixels
(lvdm/models/samplers/ddim.py, DDIMStyleSampler; lvdm/modules/attention.py; both in the released
code). Counted are matrix products and convolutions of the traced programs, loops as often as they
run and without taps that fall on padding: by the same counter, on the same networks.
"""

import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.files import write_json
from stylecrafter_jax.models import layers, vae_image
from stylecrafter_jax.models.networks import networks, parameter_shapes
from stylecrafter_jax.options import Options
from stylecrafter_jax.plan.count import by_scope, count
from stylecrafter_jax.plan.parts import part_label
from stylecrafter_jax.plan.tasks import Program, generation

OUT = Path(__file__).parent / "results" / "flops.json"


class DoubledConv(nn.Module, kw_only=True):
    """`layers.UpsampledConv` as it was released: pixels doubled, then a 3x3 convolution."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        """Returns what the released layer does."""
        c = x.shape[-1]
        kernel = jnp.asarray(self.param("kernel", nn.initializers.zeros, (3, 3, c, c)))
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (c,)))
        out = layers.convolved(layers.upsample_nearest(x), kernel, "SAME", self.dtype)
        return out + bias.astype(self.dtype)


def main() -> None:
    """Counts, prints and writes."""
    config = ModelConfig()
    found = {}
    for name, options in (("exact", Options()), ("fast", Options(fast=True))):
        task = generation(config, options.resolved(config))
        found[name] = task.flops
        if name == "exact":
            parts = breakdown(config, next(p for p in task.programs if p.name == "step"))
    found["released"] = released = released_flops(config)
    for name, value in found.items():
        print(f"{name:9} {value / 1e12:8.1f} TFLOP  {value / released:.3f} of the released order")
    for part, share in parts.items():
        print(f"  {part:24} {100 * share:5.1f} % of a step")
    content = {
        "parts_of_a_step": parts,
        "command": "python benchmarks/count_flops.py",
        "flops": found,
    }
    ratios = {f"{name}_ratio": found[name] / released for name in ("exact", "fast")}
    write_json(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT, content | ratios)


def flops(function, *args) -> float:
    """Returns the operations of a function of abstract arrays."""
    return count(jax.jit(function).trace(*args).jaxpr.jaxpr).flops


def breakdown(config: ModelConfig, step: Program) -> dict[str, float]:
    """Returns the share of a step's operations by what they are for."""
    works = by_scope(step.traced().jaxpr.jaxpr, part_label(config.unet))
    total = sum(work.flops for work in works.values())
    return {name: work.flops / total for name, work in sorted(works.items())}


def released_flops(config: ModelConfig) -> float:
    """Returns the operations of a sample in the released order of work."""
    # The same networks but for this layer; they are traced when they are counted.
    layers.UpsampledConv = vae_image.UpsampledConv = DoubledConv
    nets, of = networks.__wrapped__(config, jnp.bfloat16), jax.ShapeDtypeStruct
    options, width = Options().resolved(config), config.unet.context_dim
    params = {k: of(v.shape, jnp.bfloat16) for k, v in parameter_shapes(config).items()}
    factor, frames = config.vae.downsampling, options.frames
    size = (options.height // factor, options.width // factor)
    x, t = of((1, frames, *size, config.unet.in_channels), jnp.float32), of((1,), jnp.float32)
    text = of((1, config.clip.text.context_length, width), jnp.float32)
    style = of((1, config.adapter.image_context.num_tokens, width), jnp.float32)
    scale = of((1, config.unet.dual_layers), jnp.float32)

    def projections(*contexts) -> float:
        return flops(nets.context_kv, params, *contexts)

    again = frames - 1  # the call below counts the first frame's
    styled = flops(nets.unet, params, x, t, text, style, scale)
    plain = flops(nets.unet, params, x, t, text)
    step = styled + again * projections(text, style) + 2 * (plain + again * projections(text))
    step += flops(nets.style_scale, params, style, text)
    vision = config.clip.vision
    tokens = jax.eval_shape(nets.encode_image, params, of((1, *2 * [vision.image_size], 3), "f4"))
    once = flops(nets.encode_image, params, of((1, *2 * [vision.image_size], 3), "f4"))
    once += flops(nets.style_tokens, params, tokens)
    once += 2 * flops(nets.encode_text, params, of(text.shape[:2], jnp.int32))
    z = of((1, *size, config.vae.embed_dim), jnp.float32)
    return options.steps * step + once + frames * flops(nets.vae_decode, params, z)


if __name__ == "__main__":
    main()
