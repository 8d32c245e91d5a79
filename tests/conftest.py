"""Strict JAX flags, and a tiny model that every test may use."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import pytest

from stylecrafter_jax.config import (
    AdapterConfig,
    AutoencoderConfig,
    CLIPConfig,
    ModelConfig,
    ScaleEncoderConfig,
    SizeConfig,
    StyleTransformerConfig,
    TextTowerConfig,
    UNetConfig,
    VisionTowerConfig,
)
from tests.parity import weights

jax.config.update("jax_numpy_rank_promotion", "raise")

TINY = ModelConfig(
    unet=UNetConfig(
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        context_dim=24,
        num_head_channels=16,
        temporal_length=4,
    ),
    adapter=AdapterConfig(
        image_context=StyleTransformerConfig(
            in_dim=40, out_dim=24, num_heads=4, num_tokens=3, n_layers=1
        ),
        scale_predictor=ScaleEncoderConfig(in_dim=24, num_heads=4, num_tokens=4, n_layers=1),
    ),
    vae=AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1),
    clip=CLIPConfig(
        embed_dim=20,
        text=TextTowerConfig(width=24, heads=4, layers=2),
        vision=VisionTowerConfig(width=40, head_width=10, patch_size=56, layers=1),
    ),
    size=SizeConfig(height=16, width=24, image_height=16, image_width=16, frames=4, fps=8),
)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """A model of every kind of layer that compiles in seconds."""
    return TINY


@pytest.fixture(scope="session")
def tiny_params():
    """Its weights, by the parity rule: no layer is zero."""
    from stylecrafter_jax.models.networks import parameter_shapes

    return {
        name: weights.tensor(name, shape.shape) for name, shape in parameter_shapes(TINY).items()
    }
