import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax import params as weights_of
from stylecrafter_jax.config import CLIPConfig, TextTowerConfig, VisionTowerConfig
from stylecrafter_jax.models import clip
from tests.models.filled import normal
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
    return jax.jit(clip.encode_text, static_argnums=1)(params, config, ids)


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
    run = jax.jit(clip.encode_image, static_argnums=1)
    tokens = run(encoders[1], CLIP, pixels)
    assert tokens.shape == (2, 1 + 4, 40)
    params = jax.tree.map(np.array, encoders[1])
    norm = params["vision_model"]["post_layernorm"]
    norm["scale"], norm["bias"] = 0 * norm["scale"], 0 * norm["bias"] + 3.0
    changed = run(params, CLIP, pixels)
    assert_allclose(changed[:, 0], np.full((2, 40), 3.0))
    assert_allclose(changed[:, 1:], tokens[:, 1:], atol=1e-6)


def normalised(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def hugging_face(encoders):
    """The whole model of transformers with the same weights, which pools by the end id 10."""
    from transformers import CLIPConfig as Config
    from transformers import FlaxCLIPModel

    config = Config(
        projection_dim=CLIP.embed_dim,
        text_config={
            **clip.text_tower(CLIP, CLIP.text.layers).config.to_dict(),
            "eos_token_id": 10,
        },
        vision_config=clip.vision_tower(CLIP).config.to_dict(),
    )
    return FlaxCLIPModel(config, _do_init=False), {**encoders[0], **encoders[1]}


def test_embeddings_are_those_of_the_whole_clip_model(encoders, hugging_face):
    model, params = hugging_face
    pixels = normal(0, 2, 8, 8, 3)
    with jax.numpy_rank_promotion("allow"):
        text = jax.jit(lambda p: model.get_text_features(IDS, params=p))(params)
        channels_first = jnp.moveaxis(pixels, -1, 1)
        image = jax.jit(lambda p: model.get_image_features(channels_first, params=p))(params)
    found = jax.jit(clip.embed_text, static_argnums=1)(encoders[0], CLIP, IDS, jnp.int32(10))
    assert_allclose(found, normalised(text), atol=1e-5)
    found = jax.jit(clip.embed_image, static_argnums=1)(encoders[1], CLIP, pixels)
    assert found.shape == (2, 20)
    assert_allclose(found, normalised(image), atol=1e-5)


def test_text_is_pooled_at_the_first_end_token_whatever_its_id(encoders):
    whole = dataclasses.replace(CLIP, layer="last")
    features = encode_text(encoders[0], IDS, whole)
    run = jax.jit(clip.embed_text, static_argnums=1)
    for end, places in ((10, [3, 5]), (1, [0, 1]), (3, [1, 0])):
        wanted = np.asarray(features)[[0, 1], places] @ encoders[0]["text_projection"]["kernel"]
        found = run(encoders[0], CLIP, IDS, jnp.int32(end))
        rows = [i for i in range(2) if end in np.asarray(IDS)[i]]
        assert_allclose(np.asarray(found)[rows], normalised(wanted)[rows], atol=1e-5)
    after = run(encoders[0], CLIP, IDS.at[0, 4:].set(7), jnp.int32(10))
    before = run(encoders[0], CLIP, IDS, jnp.int32(10))
    assert_allclose(after, before, atol=1e-6)


def test_a_new_text_tower_tells_any_two_words_apart():
    text = jax.jit(lambda key: clip.init_params(CLIP, key)[0])(jax.random.key(0))
    words = jnp.array([[9, 3, word, 10, 0, 0] for word in range(1, 9)])
    found = np.asarray(encode_text(text, words))[:, 2]
    # Codes that have nothing in common are the square root of 2 of their length apart.
    distance = np.linalg.norm(found[:, None] - found, axis=-1)[np.triu_indices(8, 1)]
    assert distance.min() > np.sqrt(2) / 2 * np.linalg.norm(found, axis=-1).mean()
