"""VideoCrafter's video UNet with dual cross-attention; images with its temporal layers off."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from stylecrafter_jax import params as weights
from stylecrafter_jax.config import Fusion, UNetConfig
from stylecrafter_jax.kernels.dispatch import Implementation
from stylecrafter_jax.kernels.sharded import split_frames
from stylecrafter_jax.models.attention import ContextKV, context_kv
from stylecrafter_jax.models.layers import (
    RESNET_EPSILON,
    Conv,
    Downsample,
    EmbeddingMLP,
    GroupNorm,
    ResBlock,
    Upsample,
    tiled,
    timestep_embedding,
)
from stylecrafter_jax.models.transformer_blocks import SpatialTransformer, TemporalTransformer

# "video" runs all layers. "image" leaves the temporal ones out. "stills" runs them over frames that
# are unrelated images: each attends to itself only, and temporal convolutions are left out.
Mode = Literal["video", "image", "stills"]
Kind = Literal["conv", "res", "spatial", "temporal", "down", "up", "res_down", "res_up"]
Remat = Literal["none", "full", "dots"]

DEFAULT_FPS = 16.0  # the original's
REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Layer(NamedTuple):
    """One layer of the UNet: its name, kind, output channels, and index among its like."""

    name: str
    kind: Kind
    channels: int
    index: int = 0


class Plan(NamedTuple):
    """The UNet as a table: blocks of layers in the order they run."""

    input: list[list[Layer]]
    middle: list[Layer]
    output: list[list[Layer]]

    @property
    def layers(self) -> list[Layer]:
        blocks = [*self.input, self.middle, *self.output]
        return [layer for block in blocks for layer in block]


def unet_plan(config: UNetConfig) -> Plan:
    """Returns the layers of the UNet that `config` describes, under the checkpoint's names."""
    dual_layers = 0

    def attention(channels):
        nonlocal dual_layers
        kinds = [("spatial", channels, dual_layers)]
        dual_layers += config.transformer_depth
        return kinds + ([("temporal", channels, 0)] if config.temporal_attention else [])

    def block(name, kinds):
        return [Layer(f"{name}.{i}", *kind) for i, kind in enumerate(kinds)]

    last = len(config.channel_mult) - 1
    widths = [mult * config.model_channels for mult in config.channel_mult]
    channels = config.model_channels
    ahead = [[("conv", channels, 0)]]
    for level, width in enumerate(widths):
        for _ in range(config.num_res_blocks):
            channels, attends = width, 2**level in config.attention_resolutions
            ahead.append([("res", channels, 0), *(attention(channels) if attends else [])])
        if level != last:
            ahead.append([("res_down" if config.resblock_updown else "down", channels, 0)])
    inputs = [block(f"input_blocks.{i}", kinds) for i, kinds in enumerate(ahead)]
    middle = block(
        "middle_block", [("res", channels, 0), *attention(channels), ("res", channels, 0)]
    )
    back = []
    for level in range(last, -1, -1):
        channels = widths[level]
        for i in range(config.num_res_blocks + 1):
            attends = 2**level in config.attention_resolutions
            kinds = [("res", channels, 0), *(attention(channels) if attends else [])]
            if level and i == config.num_res_blocks:
                kinds.append(("res_up" if config.resblock_updown else "up", channels, 0))
            back.append(kinds)
    outputs = [block(f"output_blocks.{i}", kinds) for i, kinds in enumerate(back)]
    return Plan(inputs, middle, outputs)


def dual_attention_names(config: UNetConfig) -> list[str]:
    """Returns the parameter path of every dual cross-attention, in the order of their scales."""
    return [
        f"{layer.name}/transformer_blocks.{depth}/attn2"
        for layer in unet_plan(config).layers
        if layer.kind == "spatial"
        for depth in range(config.transformer_depth)
    ]


def unet_context_kv(
    params: Mapping[str, Any],
    config: UNetConfig,
    text: Float[Array, "b l d"],
    style: Float[Array, "r s d"] | None = None,
) -> list[ContextKV]:
    """Returns K and V of text and style for every dual cross-attention: once per sample.

    Args:
        params: flat UNet parameters, names without the part.
        config: the UNet they belong to.
        text: text tokens of every row of the batch, in the compute dtype.
        style: style tokens of the leading rows.
    """
    return [context_kv(params, name, text, style) for name in dual_attention_names(config)]


def unet_embeddings(
    params: Mapping[str, Any],
    config: UNetConfig,
    t: Float[Array, " s"],
    fps: Float[Array, " b"] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> dict[str, Float[Array, "s _rows _k"]]:
    """Returns what every residual block, by its name, makes of every timestep: once per sample.

    Args:
        params: flat UNet parameters, names without the part.
        config: the UNet they belong to.
        t: the timesteps of a plan.
        fps: of every video, for models with `fps_cond`; others have one row.
        dtype: compute dtype.
    """
    width = config.model_channels

    def embed(name: str, values: Array) -> Array:
        own = {"params": weights.nest(weights.part(params, name))}
        module = EmbeddingMLP(width=4 * width)
        return jnp.asarray(module.apply(own, timestep_embedding(values, width)))

    emb = embed("time_embed", t)[:, None]
    if config.fps_cond:
        fps = jnp.full((1,), DEFAULT_FPS) if fps is None else fps
        emb = emb + embed("fps_embedding", fps)[None]
    hidden = nn.silu(emb.astype(dtype))
    found = {}
    for layer in unet_plan(config).layers:
        if layer.kind in ("res", "res_down", "res_up"):
            kernel, bias = (
                params[f"{layer.name}/emb_layers.1/{leaf}"] for leaf in ("kernel", "bias")
            )
            found[layer.name] = hidden @ kernel.astype(dtype) + bias.astype(dtype)[None, None]
    return found


class UNetVideo(nn.Module, kw_only=True):
    """Predicts the noise (or v, or x0) in a video's latents.

    Args of the call:
        x: noisy latents.
        t: timesteps, one per video.
        text: text tokens, one set per video, never repeated per frame; or several sets, for all
            videos one after the other, which share what comes before the first look at them.
        style: style tokens of the leading r videos of the batch; the rest is not styled.
        style_scale: factor on the style branch per styled video and dual cross-attention layer, or
            more columns than there are layers, as the original allows; None is 1.
        fps: frames per second, for models with `fps_cond`; None is 16 as in the original.
        features: depth-adapter features, added after every third input block.
        mode: see `Mode`.
        kv: what `unet_context_kv` returned for this text and style, to save computing it.
        embeddings: likewise rows of what `unet_embeddings` returned for `t` and `fps`.
        outermost: with a number k of blocks, the call returns what enters the last k output blocks
            as well: `deep`.
        deep: that of an earlier, similar call; then only the first k input blocks and the last k
            output blocks are run (Ma et al. 2023, DeepCache, arXiv 2312.00858, sec. 3.2).

    Source: StyleCrafter, lvdm/modules/networks/openaimodel3d.py, UNetModel and UNet2DModel.
    """

    config: UNetConfig
    fusion: Fusion = "dual"
    use_norm: bool = True
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32
    impl: Implementation | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        t: Float[Array, " b"],
        text: Float[Array, "a l d"],
        style: Float[Array, "r s d"] | None = None,
        style_scale: Float[Array, "r layers"] | None = None,
        *,
        fps: Float[Array, " b"] | None = None,
        features: Sequence[Float[Array, "b f _h _w _c"]] | None = None,
        mode: Mode = "video",
        kv: Sequence[ContextKV] | None = None,
        embeddings: Mapping[str, Float[Array, "_b _k"]] | None = None,
        outermost: int | None = None,
        deep: Float[Array, "a f h3 w3 k3"] | None = None,
    ) -> Any:
        plan = unet_plan(self.config)
        layers = self.config.dual_layers
        if style_scale is not None and style_scale.shape[1] < layers:
            raise ValueError(f"style_scale: wanted {layers} layers, got {style_scale.shape[1]}")
        emb = self.embedding(t, fps) if embeddings is None else None
        projected = {} if embeddings is None else embeddings
        text = text.astype(self.dtype)
        style = None if style is None else style.astype(self.dtype)
        temporal = self.temporal_inputs(x.shape[1], text, style, mode)

        def run(block, h, skip=None):
            for layer in block:
                times = (emb, projected.get(layer.name))
                contexts = (text, style, style_scale, kv)
                h = split_frames(self.run_layer(layer, h, times, contexts, temporal, skip))
                skip = None
            return h

        h = split_frames(x.astype(self.dtype))
        skips = []
        wanted = len(plan.input) // 3
        if features is not None and len(features) != wanted:
            raise ValueError(f"features: wanted {wanted} levels, got {len(features)}")
        kept = len(plan.output) - (outermost or 0)
        ahead, back = plan.input, plan.output
        if deep is not None:
            ahead, back = ahead[: len(back) - kept], back[kept:]
        for i, block in enumerate(ahead):
            h = run(block, h)
            if i == 0 and self.config.addition_attention:
                h = run([Layer("init_attn.0", "temporal", h.shape[-1])], h)
            if features is not None and (i + 1) % 3 == 0:
                h = h + tiled(features[i // 3].astype(self.dtype), h.shape[0])
            skips.append(h)
        h = run(plan.middle, h) if deep is None else deep
        for block in back:
            if len(skips) == len(plan.output) - kept:
                deep = h
            h = run(block, h, skips.pop())
        norm = GroupNorm(
            epsilon=RESNET_EPSILON,
            groups=self.config.norm_groups,
            silu=True,
            dtype=self.dtype,
            name="out.0",
        )
        h = tiled(norm(h), text.shape[0])
        h = Conv(features=self.config.out_channels, dtype=self.dtype, name="out.2")(h)
        h = h.astype(jnp.float32)
        return h if outermost is None else (h, deep)

    def embedding(
        self, t: Float[Array, " b"], fps: Float[Array, " b"] | None
    ) -> Float[Array, "b k"]:
        """Returns the time embedding, with the frame rate in it where the model wants one."""
        width = self.config.model_channels
        mlp = EmbeddingMLP(width=4 * width, name="time_embed")
        emb = mlp(timestep_embedding(t, width))
        if self.config.fps_cond:
            fps = jnp.full_like(t, DEFAULT_FPS) if fps is None else fps
            mlp = EmbeddingMLP(width=4 * width, name="fps_embedding")
            emb = emb + mlp(timestep_embedding(fps, width))
        return emb.astype(self.dtype)

    def temporal_inputs(
        self,
        frames: int,
        text: Float[Array, "a l d"],
        style: Float[Array, "r s d"] | None,
        mode: Mode,
    ) -> "TemporalInputs":
        """Returns what the temporal layers need beside the hidden state."""
        mask = None
        if mode == "stills":
            mask = jnp.eye(frames, dtype=bool)[None]
        elif self.config.use_causal_attention and self.config.temporal_selfatt_only:
            # The original masks nothing where the second attention reads text and style.
            mask = jnp.tril(jnp.ones((frames, frames), dtype=bool))[None]
        if self.config.temporal_selfatt_only:
            return TemporalInputs(mode, mask)
        if style is None:
            return TemporalInputs(mode, mask, text)
        b, r, s = text.shape[0], style.shape[0], style.shape[1]
        padded = jnp.pad(style, ((0, b - r), (0, 0), (0, 0)))
        context = jnp.concatenate([text, padded], axis=1)
        if r == b:
            return TemporalInputs(mode, mask, context)
        has_style = jnp.arange(b)[:, None] < r
        is_text = jnp.arange(context.shape[1])[None] < context.shape[1] - s
        return TemporalInputs(mode, mask, context, has_style | is_text)

    def run_layer(self, layer: Layer, h, times, contexts, temporal: "TemporalInputs", skip):
        """Runs one layer of the plan under its name; a residual block takes what was skipped."""
        config, name, channels = self.config, layer.name, layer.channels
        if layer.kind == "conv":
            return Conv(features=channels, dtype=self.dtype, name=name)(h)
        if layer.kind == "down":
            return Downsample(learned=config.conv_resample, dtype=self.dtype, name=name)(h)
        if layer.kind == "up":
            return Upsample(learned=config.conv_resample, dtype=self.dtype, name=name)(h)
        if layer.kind in ("spatial", "temporal"):
            return self.run_transformer(layer, h, contexts, temporal)
        time_kind = "space_time" if config.tempspatial_aware else "time"
        has_time = config.temporal_conv and layer.kind == "res"
        block = self.rematerialised(ResBlock, (3,))(
            out_channels=channels,
            resample={"res": "none", "res_up": "up", "res_down": "down"}[layer.kind],
            use_scale_shift_norm=config.use_scale_shift_norm,
            temporal_conv=time_kind if has_time else "none",
            norm_groups=config.norm_groups,
            dtype=self.dtype,
            name=name,
        )
        emb, projected = (None if e is None else tiled(e, h.shape[0]) for e in times)
        return block(h, emb, temporal.mode == "video", skip, projected)

    def run_transformer(self, layer: Layer, h, contexts, temporal: "TemporalInputs"):
        """Runs one spatial or temporal transformer; the latter is skipped in image mode."""
        config = self.config
        heads, head_dim = config.heads(layer.channels)
        size = {"heads": heads, "head_dim": head_dim, "norm_groups": config.norm_groups}
        size |= {"dtype": self.dtype, "impl": self.impl, "name": layer.name}
        if layer.kind == "spatial":
            block = self.rematerialised(SpatialTransformer)(
                depth=config.transformer_depth,
                use_linear=config.use_linear,
                layer=layer.index,
                fusion=self.fusion,
                use_norm=self.use_norm,
                **size,
            )
            return block(h, *contexts)
        if temporal.mode == "image" and not self.is_initializing():
            return h
        depth, use_linear = config.temporal_transformer_depth, config.use_linear
        if layer.name.startswith("init_attn"):  # the original's exceptions
            size |= {"heads": 8, "head_dim": config.num_head_channels}
            depth, use_linear = config.transformer_depth, False
        block = self.rematerialised(TemporalTransformer)(
            depth=depth,
            use_linear=use_linear,
            relative=config.temporal_length if config.use_relative_position else None,
            self_attention_only=config.temporal_selfatt_only,
            **size,
        )
        if temporal.context is not None:
            h = tiled(h, temporal.context.shape[0])
        return block(h, temporal.context, temporal.mask, temporal.context_mask)

    def rematerialised(self, block: Any, static: tuple[int, ...] = ()) -> Any:
        """Returns the module class, wrapped so that its activations are computed again."""
        if self.remat == "none":
            return block
        return nn.remat(block, policy=REMAT_POLICIES[self.remat], static_argnums=static)


class TemporalInputs(NamedTuple):
    """What temporal layers need beside the hidden state; masks are True where attended."""

    mode: Mode
    mask: Bool[Array, "1 f f"] | None = None
    context: Float[Array, "b l d"] | None = None
    context_mask: Bool[Array, "b l"] | None = None
