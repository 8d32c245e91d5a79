"""The demo model before training: every class of the full-size model, a few million weights.

Latents are 8x8x32 for pictures of 64x64 pixels: a coarse grid keeps the UNet affordable on a CPU.
The autoencoder sees patches of 8x8 pixels as channels and begins as their principal components.

Command:
    stylecrafter new configs/demo_model.py bundles/demo_new
"""

import numpy as np

from stylecrafter_jax.config import (
    AdapterConfig,
    AutoencoderConfig,
    CLIPConfig,
    ModelConfig,
    SamplingConfig,
    ScaleEncoderConfig,
    ScheduleConfig,
    SizeConfig,
    StyleTransformerConfig,
    TextTowerConfig,
    UNetConfig,
    VisionTowerConfig,
)
from stylecrafter_jax.train.new_model import NewModel
from stylecrafter_jax.world.drawing import draw
from stylecrafter_jax.world.source import WorldSource

CAPTIONS = 4_000  # of each kind, enough to see every word
PICTURES = 2_000


def get_model() -> NewModel:
    """Returns the model, captions with every word of the demo world, and pictures."""
    unet = UNetConfig(
        in_channels=32,
        out_channels=32,
        model_channels=96,
        num_res_blocks=1,
        attention_resolutions=(1, 2),
        channel_mult=(1, 1),
        context_dim=128,
        num_head_channels=32,
        temporal_length=8,
        addition_attention=False,
        norm_groups=8,
    )
    config = ModelConfig(
        unet=unet,
        adapter=AdapterConfig(
            image_context=StyleTransformerConfig(
                in_dim=128, out_dim=128, num_heads=4, num_tokens=8, n_layers=2
            ),
            scale_predictor=ScaleEncoderConfig(
                in_dim=128, num_heads=4, num_tokens=unet.dual_layers, n_layers=1
            ),
        ),
        vae=AutoencoderConfig(
            ch=128,
            ch_mult=(1,),
            num_res_blocks=1,
            z_channels=32,
            embed_dim=32,
            norm_groups=8,
            patch_size=8,
        ),
        clip=CLIPConfig(
            embed_dim=128,
            text=TextTowerConfig(context_length=24, vocab_size=768, width=128, heads=4, layers=3),
            vision=VisionTowerConfig(
                image_size=64, patch_size=8, width=128, head_width=32, layers=4
            ),
            layer="last",
        ),
        schedule=ScheduleConfig(prediction="v", zero_terminal_snr=True),
        size=SizeConfig(height=64, width=64, image_height=64, image_width=64, frames=8, fps=8),
        sampling=SamplingConfig(
            steps=25,
            sampler="dpmsolver++",
            text_guidance=2.0,
            style_guidance=3.0,
            image_text_guidance=2.0,
            image_style_guidance=3.0,
        ),
    )
    sources = WorldSource("looks", CAPTIONS), WorldSource("clips", CAPTIONS)
    captions = tuple(source[i].caption for source in sources for i in range(CAPTIONS))
    pictures = np.concatenate([draw(sources[0][i].scene) for i in range(PICTURES)])
    return NewModel(config=config, captions=captions, pictures=pictures)
