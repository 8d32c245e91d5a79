"""The original's blocks told once more with torch.nn.functional; weights are a state dict.

Layouts are PyTorch's: video `b c f h w`, image `b c h w`, tokens `b n c`.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from tests.models import constructor


class Weights:
    """A state dict read below a prefix, and the layers that need its entries."""

    def __init__(self, state: dict[str, Any], prefix: str = ""):
        self.state, self.prefix = state, prefix

    def below(self, name):
        return Weights(self.state, f"{self.prefix}{name}.")

    def __getitem__(self, name):
        return self.state[self.prefix + name]

    def pair(self, name):
        return self[f"{name}.weight"], self.state.get(f"{self.prefix}{name}.bias")

    def linear(self, name, x):
        return F.linear(x, *self.pair(name))

    def conv(self, name, x, stride=1, padding=None):
        weight, bias = self.pair(name)
        conv = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
        if padding is None:
            padding = [size // 2 for size in weight.shape[2:]]
        return conv(x, weight, bias, stride=stride, padding=padding)

    def group_norm(self, name, x, eps):
        return F.group_norm(x, 32, *self.pair(name), eps=eps)

    def layer_norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], *self.pair(name))


def tensors(state: dict[str, np.ndarray]) -> Weights:
    """Returns a state dict of NumPy arrays as weights."""
    return Weights({name: torch.tensor(value) for name, value in state.items()})


def apply(block, state, x, *args, **kwargs) -> np.ndarray:
    """Returns a block of this file on arrays; `x` and the result have their channels last."""

    def tensor(value):
        return torch.tensor(np.asarray(value)) if hasattr(value, "dtype") else value

    def channels(value, source, target):
        return value if value.ndim < 4 else torch.movedim(value, source, target)

    args = [tensor(value) for value in args]
    kwargs = {name: tensor(value) for name, value in kwargs.items()}
    with torch.no_grad():
        y = block(tensors(state), channels(tensor(x), -1, 1), *args, **kwargs)
    return channels(y, 1, -1).numpy()


def images(layer, x):
    """Returns a layer of images on every frame of a video."""
    y = layer(rearrange(x, "b c f h w -> (b f) c h w"))
    return rearrange(y, "(b f) c h w -> b c f h w", b=x.shape[0])


def timestep_embedding(t, width):
    half = width // 2
    angles = [t * math.exp(-math.log(10000) * i / half) for i in range(half)]
    rows = [torch.cos(a) for a in angles] + [torch.sin(a) for a in angles]
    return torch.stack(rows + [torch.zeros_like(t)] * (width % 2), dim=-1)


def embedding_mlp(w, name, t, width):
    hidden = F.silu(w.linear(f"{name}.0", timestep_embedding(t, width)))
    return w.linear(f"{name}.2", hidden)


def resampled(kind, x):
    if kind == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if kind == "down" else x


def downsample(w, x, *, learned):
    return images(lambda y: w.conv("op", y, stride=2) if learned else resampled("down", y), x)


def upsample(w, x, *, learned):
    def layer(y):
        return w.conv("conv", resampled("up", y)) if learned else resampled("up", y)

    return images(layer, x)


def group_norm(w, x, *, joint, eps):
    weight, bias = w["weight"], w["bias"]
    if joint:
        return F.group_norm(x, 32, weight, bias, eps=eps)
    return images(lambda y: F.group_norm(y, 32, weight, bias, eps=eps), x)


def res_block(w, x, emb, *, resample="none", scale_shift=False, convolves_time=False):
    frames = x.shape[2]
    x = rearrange(x, "b c f h w -> (b f) c h w")
    h = resampled(resample, F.silu(w.group_norm("in_layers.0", x, 1e-5)))
    h = w.conv("in_layers.2", h)
    emb = w.linear("emb_layers.1", F.silu(emb)).repeat_interleave(frames, dim=0)[:, :, None, None]
    if scale_shift:
        scale, shift = emb.chunk(2, dim=1)
        h = w.group_norm("out_layers.0", h, 1e-5) * (1 + scale) + shift
    else:
        h = w.group_norm("out_layers.0", h + emb, 1e-5)
    h = w.conv("out_layers.3", F.silu(h))
    x = resampled(resample, x)
    h = h + (x if x.shape[1] == h.shape[1] else w.conv("skip_connection", x))
    h = rearrange(h, "(b f) c h w -> b c f h w", f=frames)
    return temporal_conv(w.below("temopral_conv"), h) if convolves_time else h


def temporal_conv(w, x):
    h = x
    for name, index in (("conv1", 2), ("conv2", 3), ("conv3", 3), ("conv4", 3)):
        h = w.conv(f"{name}.{index}", F.silu(w.group_norm(f"{name}.0", h, 1e-5)))
    return x + h


def attend(q, k, v, heads, mask=None):
    q, k, v = (rearrange(y, "b n (m e) -> b m n e", m=heads) for y in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out, "b m n e -> b n (m e)")


def relative_attend(q, k, v, heads, table_k, table_v, mask=None):
    """Attends one query after another, each with keys and values moved by their distance to it."""
    q, k, v = (rearrange(y, "b n (m e) -> b m n e", m=heads) for y in (q, k, v))
    extent = (len(table_k) - 1) // 2
    rows = []
    for i in range(q.shape[2]):
        near = [max(-extent, min(extent, j - i)) + extent for j in range(k.shape[2])]
        logits = ((k + table_k[near]) * q[:, :, i, None]).sum(-1) / math.sqrt(q.shape[-1])
        if mask is not None:
            logits = logits.masked_fill(~mask[i], -torch.inf)
        rows.append((logits.softmax(-1)[..., None] * (v + table_v[near])).sum(-2))
    return rearrange(torch.stack(rows, 2), "b m n e -> b n (m e)")


def attention(w, x, context=None, *, heads, mask=None, relative=False):
    source = x if context is None else context
    q, k, v = w.linear("to_q", x), w.linear("to_k", source), w.linear("to_v", source)
    if relative:
        tables = (w[f"relative_position_{side}.embeddings_table"] for side in "kv")
        out = relative_attend(q, k, v, heads, *tables, mask)
    else:
        out = attend(q, k, v, heads, mask)
    return w.linear("to_out.0", out)


def feed_forward(w, x):
    x, gate = w.linear("net.0.proj", x).chunk(2, dim=-1)
    return w.linear("net.2", x * F.gelu(gate))


def dual_attention(w, x, text, style=None, scale=None, *, heads, use_norm=True):
    """Rows of `x` (b n c) are frames; text and style have as many."""
    q = w.linear("to_q", x)
    out = attend(q, w.linear("to_k", text), w.linear("to_v", text), heads)
    if style is not None:
        styled = attend(q, w.linear("to_k_style", style), w.linear("to_v_style", style), heads)
        if use_norm:
            styled = w.layer_norm("norm_style", styled)
        else:
            sizes = [torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True) for y in (out, styled)]
            styled = (sizes[0] / (sizes[1] + 1e-6)).detach() * styled
        out = out + (1.0 if scale is None else scale[:, None, None]) * styled
    return w.linear("to_out.0", out)


def spatial_transformer(
    w, x, text, style=None, scale=None, *, heads, depth, linear, first=0, use_norm=True
):
    """Column `first + i` of `scale` (one row per video) is that of the transformer's block i."""
    frames, height = x.shape[2], x.shape[3]
    x = rearrange(x, "b c f h w -> (b f) c h w")
    h = w.group_norm("norm", x, 1e-6)
    text, style, scale = (
        None if y is None else y.repeat_interleave(frames, dim=0) for y in (text, style, scale)
    )
    if linear:
        h = w.linear("proj_in", rearrange(h, "b c h w -> b (h w) c"))
    else:
        h = rearrange(w.conv("proj_in", h), "b c h w -> b (h w) c")
    for i in range(depth):
        block = w.below(f"transformer_blocks.{i}")
        h = h + attention(block.below("attn1"), block.layer_norm("norm1", h), heads=heads)
        own = None if scale is None else scale[:, first + i]
        h = h + dual_attention(
            block.below("attn2"), block.layer_norm("norm2", h), text, style, own,
            heads=heads, use_norm=use_norm,
        )  # fmt: skip
        h = h + feed_forward(block.below("ff"), block.layer_norm("norm3", h))
    if linear:
        h = rearrange(w.linear("proj_out", h), "b (h w) c -> b c h w", h=height)
    else:
        h = w.conv("proj_out", rearrange(h, "b (h w) c -> b c h w", h=height))
    return rearrange(x + h, "(b f) c h w -> b c f h w", f=frames)


def temporal_transformer(w, x, context=None, *, heads, depth, linear, relative=False, causal=False):
    """With a context the second attention reads it, and no attention is masked."""
    b, _, frames, height, width = x.shape
    h = rearrange(w.group_norm("norm", x, 1e-6), "b c f h w -> (b h w) c f")
    if linear:
        h = w.linear("proj_in", rearrange(h, "n c f -> n f c"))
    else:
        h = rearrange(w.conv("proj_in", h), "n c f -> n f c")
    mask = torch.ones(frames, frames, dtype=torch.bool).tril() if causal else None
    if context is not None:
        context, mask = context.repeat_interleave(height * width, dim=0), None
    options = {"heads": heads, "relative": relative, "mask": mask}
    for i in range(depth):
        block = w.below(f"transformer_blocks.{i}")
        h = h + attention(block.below("attn1"), block.layer_norm("norm1", h), **options)
        h = h + attention(block.below("attn2"), block.layer_norm("norm2", h), context, **options)
        h = h + feed_forward(block.below("ff"), block.layer_norm("norm3", h))
    if linear:
        h = rearrange(w.linear("proj_out", h), "n f c -> n c f")
    else:
        h = w.conv("proj_out", rearrange(h, "n f c -> n c f"))
    return x + rearrange(h, "(b h w) c f -> b c f h w", b=b, h=height)


def unet(w, x, t, text, style=None, scale=None, *, config, fps=None, features=(), video=True):
    """The whole UNet; in image mode (`video=False`) its temporal layers are left out."""
    emb = embedding_mlp(w, "time_embed", t, config.model_channels)
    if config.fps_cond:
        fps = torch.full_like(t, 16.0) if fps is None else fps
        emb = emb + embedding_mlp(w, "fps_embedding", fps, config.model_channels)
    context = None
    if not config.temporal_selfatt_only:
        context = text if style is None else torch.cat([text, style], dim=1)
    done = {"spatial": 0}

    def heads(channels):
        width = config.num_head_channels
        return config.num_heads if width == -1 else channels // width

    def temporal(name, h, **options):
        return temporal_transformer(
            w.below(name), h, context, relative=config.use_relative_position,
            causal=config.use_causal_attention, **options,
        )  # fmt: skip

    def run(layer, h):
        name, kind, _, after = layer
        own = w.below(name)
        if kind == "conv":
            return images(lambda y: w.conv(name, y), h)
        if kind in ("down", "up"):
            resize = downsample if kind == "down" else upsample
            return resize(own, h, learned=config.conv_resample)
        if kind == "spatial":
            first = done["spatial"]
            done["spatial"] += config.transformer_depth
            return spatial_transformer(
                own, h, text, style, scale, heads=heads(after), depth=config.transformer_depth,
                linear=config.use_linear, first=first,
            )  # fmt: skip
        if kind == "temporal":
            depth = config.temporal_transformer_depth
            options = {"heads": heads(after), "depth": depth, "linear": config.use_linear}
            return temporal(name, h, **options) if video else h
        return res_block(
            own, h, emb, resample={"res": "none", "res_up": "up", "res_down": "down"}[kind],
            scale_shift=config.use_scale_shift_norm,
            convolves_time=config.temporal_conv and kind == "res" and video,
        )  # fmt: skip

    h, skips = x, []
    blocks = constructor.layers(config)
    for i, block in enumerate(blocks):
        if block[0].name.startswith("output"):
            h = torch.cat([h, skips.pop()], dim=1)
        for layer in block:
            h = run(layer, h)
        if i == 0 and config.addition_attention and video:
            h = temporal("init_attn.0", h, heads=8, depth=config.transformer_depth, linear=False)
        if block[0].name.startswith("input"):
            if i % 3 == 2 and len(features):
                h = h + torch.movedim(features[i // 3], -1, 1)
            skips.append(h)
    return images(lambda y: w.conv("out.2", F.silu(w.group_norm("out.0", y, 1e-5))), h)


def vae_resnet(w, x):
    h = w.conv("conv1", F.silu(w.group_norm("norm1", x, 1e-6)))
    h = w.conv("conv2", F.silu(w.group_norm("norm2", h, 1e-6)))
    return h + (x if x.shape[1] == h.shape[1] else w.conv("nin_shortcut", x))


def vae_attention(w, x):
    h = w.group_norm("norm", x, 1e-6)
    q, k, v = (rearrange(w.conv(name, h), "b c h w -> b (h w) c") for name in "qkv")
    h = rearrange(attend(q, k, v, heads=1), "b (h w) c -> b c h w", h=x.shape[2])
    return x + w.conv("proj_out", h)


def _vae_level(w, x, blocks, attends):
    for i in range(blocks):
        x = vae_resnet(w.below(f"block.{i}"), x)
        if attends:
            x = vae_attention(w.below(f"attn.{i}"), x)
    return x


def _vae_middle(w, x):
    x = vae_attention(w.below("attn_1"), vae_resnet(w.below("block_1"), x))
    return vae_resnet(w.below("block_2"), x)


def vae_encode(w, x, *, config):
    """Returns the moments. `resolution` is nominal: it counts levels, whatever the size of `x`."""
    own, levels = w.below("encoder"), len(config.ch_mult)
    h = own.conv("conv_in", x)
    for level in range(levels):
        attends = config.resolution // 2**level in config.attn_resolutions
        h = _vae_level(own.below(f"down.{level}"), h, config.num_res_blocks, attends)
        if level < levels - 1:
            name = f"down.{level}.downsample.conv"
            h = own.conv(name, F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
    h = _vae_middle(own.below("mid"), h)
    h = own.conv("conv_out", F.silu(own.group_norm("norm_out", h, 1e-6)))
    return w.conv("quant_conv", h)


def vae_decode(w, z, *, config):
    own, levels = w.below("decoder"), len(config.ch_mult)
    h = _vae_middle(own.below("mid"), own.conv("conv_in", w.conv("post_quant_conv", z)))
    for level in reversed(range(levels)):
        attends = config.resolution // 2**level in config.attn_resolutions
        h = _vae_level(own.below(f"up.{level}"), h, config.num_res_blocks + 1, attends)
        if level > 0:
            h = own.conv(f"up.{level}.upsample.conv", resampled("up", h))
    return own.conv("conv_out", F.silu(own.group_norm("norm_out", h, 1e-6)))
