import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax import params as weights_of
from stylecrafter_jax.config import CLIPConfig, TextTowerConfig, VisionTowerConfig
from stylecrafter_jax.models import clip
from tests.models.filled import compiled, normal
from tests.parity import weights

CLIP = CLIPConfig(
    embed_dim=20,
    text=TextTowerConfig(context_length=6, vocab_size=11, width=24, heads=4, layers=2),
    vision=VisionTowerConfig(image_size=8, patch_size=4, width=40, head_width=10, layers=2),
)
IDS = jnp.array([[9, 3, 5, 10, 0, 0], [9, 1, 1, 2, 4, 10]])


@pytest.fixture(scope="module")
def encoders():
    """Parameters of the text and the image encoder, none of them zero."""
    made = jax.eval_shape(lambda: clip.init_params(CLIP, jax.random.key(0)))
    return tuple(
        weights_of.nest(
            {name: weights.tensor(name, y.shape) for name, y in weights_of.flatten(tree).items()}
        )
        for tree in made
    )


def encode_text(params, ids, config=CLIP):
    return compiled(clip.encode_text, static_argnums=1)(params, config, ids)


def test_text_features_depend_on_earlier_tokens_alone(encoders):
    before = encode_text(encoders[0], IDS)
    after = encode_text(encoders[0], IDS.at[:, 3].set(7))
    assert before.shape == (2, 6, 24)
    assert_allclose(after[:, :3], before[:, :3], atol=1e-6)
    assert np.abs(after - before)[:, 3:].max(axis=(0, 2)).min() > 1e-3


def test_positions_after_the_end_token_are_features_too(encoders):
    found = encode_text(encoders[0], IDS)
    alone = encode_text(encoders[0], IDS[:1])
    assert_allclose(found[:1], alone, atol=1e-6)
    assert np.abs(found[0, 4] - found[0, 5]).max() > 1e-3


def test_penultimate_leaves_the_last_block_out(encoders):
    text = jax.tree.map(np.array, encoders[0])
    last = text["text_model"]["encoder"]["layers"].pop("1")
    penultimate = encode_text(encoders[0], IDS)
    assert_allclose(encode_text(text, IDS), penultimate, atol=1e-6)
    text["text_model"]["encoder"]["layers"]["1"] = last
    whole = encode_text(text, IDS, dataclasses.replace(CLIP, layer="last"))
    assert np.abs(whole - penultimate).max() > 1e-2


def test_only_the_class_token_is_normed_last(encoders):
    pixels = normal(0, 2, 8, 8, 3)
    run = compiled(clip.encode_image, static_argnums=1)
    tokens = run(encoders[1], CLIP, pixels)
    assert tokens.shape == (2, 1 + 4, 40)
    params = jax.tree.map(np.array, encoders[1])
    norm = params["vision_model"]["post_layernorm"]
    norm["scale"], norm["bias"] = 0 * norm["scale"], 0 * norm["bias"] + 3.0
    changed = run(params, CLIP, pixels)
    assert_allclose(changed[:, 0], np.full((2, 40), 3.0))
    assert_allclose(changed[:, 1:], tokens[:, 1:], atol=1e-6)
