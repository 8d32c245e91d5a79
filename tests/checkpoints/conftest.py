"""A tiny StyleCrafter as the original's files: values depend on the PyTorch names alone."""

import numpy as np
import pytest

from stylecrafter_jax.checkpoints import layout
from stylecrafter_jax.checkpoints.stylecrafter import FILES, TEXT, UNET, entries
from stylecrafter_jax.checkpoints.torch_files import write_torch
from stylecrafter_jax.config import (
    AdapterConfig,
    AutoencoderConfig,
    CLIPConfig,
    ModelConfig,
    ScaleEncoderConfig,
    StyleTransformerConfig,
    TextTowerConfig,
    UNetConfig,
    VisionTowerConfig,
)
from stylecrafter_jax.diffusion.schedules import buffers, make_schedule
from stylecrafter_jax.models.networks import parameter_shapes
from tests.parity import weights


@pytest.fixture(scope="session")
def config():
    """The sizes of the parity case `pipeline_tiny`, with a small vocabulary."""
    return ModelConfig(
        unet=UNetConfig(
            model_channels=32,
            num_res_blocks=1,
            context_dim=24,
            num_head_channels=16,
            temporal_length=4,
        ),
        adapter=AdapterConfig(
            image_context=StyleTransformerConfig(in_dim=40, out_dim=24),
            scale_predictor=ScaleEncoderConfig(in_dim=24, num_tokens=10),
        ),
        vae=AutoencoderConfig(ch=32, num_res_blocks=1),
        clip=CLIPConfig(
            embed_dim=20,
            text=TextTowerConfig(width=24, heads=4, layers=3, vocab_size=99),
            vision=VisionTowerConfig(width=40, head_width=10, layers=3, patch_size=32),
        ),
    )


@pytest.fixture(scope="session")
def expected(config):
    return parameter_shapes(config)


@pytest.fixture(scope="session")
def original(config, expected):
    """Kind of file -> what `torch.save` gets: names and shapes as released, values of our own."""

    def tensors(kind, prefix):
        table = entries(kind, expected)
        shapes = {e.name: layout.shape(e, expected[name].shape) for name, e in table.items()}
        order = sorted(shapes, key=layout.order)
        return {name: weights.tensor(prefix + name, shapes[name]) for name in order}

    open_clip = tensors("open_clip", TEXT)
    temporal = {}
    for name, array in tensors("temporal", "temporal " + UNET).items():
        depth = 2 if name.startswith(("init_attn", "middle_block")) else 3
        module, row = ".".join(name.split(".")[:depth]), ".".join(name.split(".")[depth:])
        temporal.setdefault(module, {})[row] = array
    tables = buffers(make_schedule(config.schedule))
    return {
        "model": {"state_dict": tables | tensors("model", ""), "global_step": 7},
        "temporal": temporal,
        "adapter": tensors("adapter", FILES["adapter"].prefix),
        "open_clip": open_clip,
    }


@pytest.fixture(scope="session")
def files(original, tmp_path_factory):
    """Keyword arguments of `import_original` that name the released files."""
    pytest.importorskip("torch", reason="PyTorch's files need PyTorch")
    folder = tmp_path_factory.mktemp("original")
    for kind, content in original.items():
        content = {"state_dict": content["state_dict"]} if kind == "model" else content
        write_torch(folder / FILES[kind].name, content)
    paths = {kind: folder / FILES[kind].name for kind in FILES}
    return {"model_ckpt": paths.pop("model"), **paths}


@pytest.fixture(scope="session")
def params(expected):
    """Parameters of the tiny model with values of our own."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape.shape, dtype=np.float32) for name, shape in expected.items()
    }
