"""Strict JAX flags, and a tiny model that every test may use."""

import dataclasses
import os
import signal

from tests.flags import FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", FLAGS.format(8))
# Every test compiles for itself, and leaves the user's cache alone.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax import sharding
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

# A shell starts what runs in the background with Ctrl-C ignored; tests of Ctrl-C need it heard.
signal.signal(signal.SIGINT, signal.default_int_handler)
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


# One level of the UNet is enough where the claim is not about networks.
SMALL = dataclasses.replace(
    TINY,
    unet=dataclasses.replace(
        TINY.unet, channel_mult=(1,), attention_resolutions=(1,), addition_attention=False
    ),
)


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory):
    """A model even smaller than the tiny one, as a bundle folder."""
    from stylecrafter_jax.checkpoints.bundle import BundleWriter
    from stylecrafter_jax.models.networks import parameter_shapes

    path = tmp_path_factory.mktemp("bundles") / "small"
    with BundleWriter(path, SMALL) as writer:
        for name, shape in sorted(parameter_shapes(SMALL).items()):
            # Random weights make grey pictures; more contrast shows a difference in 256 levels.
            gain = 8.0 if name == "vae/decoder/conv_out/kernel" else 1.0
            writer.add(name, np.float32(gain) * weights.tensor(name, shape.shape))
    return path


@pytest.fixture(scope="session")
def small_model(small_bundle):
    """It, ready to generate; what one test compiles the next one uses."""
    from stylecrafter_jax.generate import StyleCrafter

    return StyleCrafter.load(small_bundle)


@pytest.fixture(scope="session")
def original():
    """The original's blocks in PyTorch."""
    pytest.importorskip("torch", reason="the independent blocks are written in PyTorch")
    from tests.models import torch_blocks

    return torch_blocks


@pytest.fixture(scope="session")
def style_files(tmp_path_factory):
    """Three different pictures."""
    folder = tmp_path_factory.mktemp("styles")
    paths = [folder / f"style{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        pixels = np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        pixels[..., i] //= 4
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture
def everything_is_split(monkeypatch):
    """Eight devices, over which the arrays of a small model are split as well."""
    if jax.device_count() < 8:
        pytest.skip("eight devices are not here")
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)
