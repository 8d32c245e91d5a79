"""Hugging Face's towers, read by the table, compute what Hugging Face's PyTorch computes."""

import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax.checkpoints import clip, layout
from stylecrafter_jax.config import CLIPConfig, TextTowerConfig, VisionTowerConfig
from stylecrafter_jax.models.clip import encode_image, encode_text
from stylecrafter_jax.params import nest, part


def _tiny_clip():
    transformers = pytest.importorskip("transformers")
    text = {"vocab_size": 99, "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "projection_dim": 20, "hidden_act": "gelu"}
    vision = {"hidden_size": 40, "intermediate_size": 160, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4, "image_size": 64, "patch_size": 32, "hidden_act": "gelu"}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision | {"projection_dim": 20}, projection_dim=20
    )
    ours = CLIPConfig(
        embed_dim=20,
        text=TextTowerConfig(width=24, heads=4, layers=2, vocab_size=99),
        vision=VisionTowerConfig(width=40, head_width=10, layers=2, patch_size=32, image_size=64),
        layer="last",
    )
    return transformers.CLIPModel(config).eval(), ours


def test_hugging_face_towers_give_hugging_faces_features(expected):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model, config = _tiny_clip()
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    names = [n for n in expected if n.startswith(("text_encoder/", "image_encoder/"))]
    names = [name for name in names if "/layers/2/" not in name]
    assert clip.layout_of(tensors) is clip.huggingface
    ours = {name: layout.read(clip.huggingface(name), tensors) for name in names}
    assert {clip.huggingface(name).name for name in names} == set(tensors)
    ids, pixels = np.arange(77)[None] % 99, np.random.default_rng(0).normal(size=(1, 64, 64, 3))
    pixels = pixels.astype(np.float32)
    with torch.no_grad():
        text = model.text_model(torch.from_numpy(ids)).last_hidden_state.numpy()
        image = model.vision_model(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    got = encode_text(nest(part(ours, "text_encoder")), config, jnp.asarray(ids))
    np.testing.assert_allclose(got, text, atol=1e-5)
    got = encode_image(nest(part(ours, "image_encoder")), config, jnp.asarray(pixels))
    np.testing.assert_allclose(got[:, 1:], image.last_hidden_state.numpy()[:, 1:], atol=1e-5)
