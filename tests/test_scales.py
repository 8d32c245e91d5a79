"""Scales of the style branch: what the networks predict, per layer, and constants without them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax.checkpoints.bundle import BundleWriter, load_bundle
from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.media.images import ImageError, clip_pixels, load_style_image
from stylecrafter_jax.models.networks import networks, parameter_shapes
from stylecrafter_jax.scales import dual_layers, group_of, measure, series
from stylecrafter_jax.tokenizer import Tokenizer
from tests.conftest import SMALL, TINY
from tests.parity import weights

PROMPTS = ["a cat", "a dog", "a wolf that walks through the dark and silent forest at night"]


def bundle(path, **adapter):
    """A bundle of the small model with another adapter."""
    config = dataclasses.replace(SMALL, adapter=dataclasses.replace(SMALL.adapter, **adapter))
    with BundleWriter(path, config) as writer:
        for name, shape in parameter_shapes(config).items():
            writer.add(name, weights.tensor(name, shape.shape))
    return path


def test_scales_are_what_the_networks_predict(small_bundle, style_files):
    found = measure(small_bundle, PROMPTS, style_files[:2])
    config, params = load_bundle(small_bundle, expected=parameter_shapes)
    nets = networks(config)
    tokenizer = Tokenizer.in_bundle(small_bundle, config.clip.text.context_length)
    text = jax.jit(nets.encode_text)(params, tokenizer(PROMPTS))
    assert found.factors.shape == (2, 3, len(found.layers))
    for factors, path in zip(found.factors, style_files, strict=False):
        image = clip_pixels(load_style_image(path)[None], config.clip.vision.image_size)
        style = jax.jit(nets.style_tokens)(params, jax.jit(nets.encode_image)(params, image))
        wanted = jax.jit(nets.style_scale)(params, jnp.repeat(style, 3, axis=0), text)
        np.testing.assert_allclose(factors, wanted[:, : len(found.layers)], rtol=0, atol=1e-5)
    assert found.factors.std() > 1e-4
    assert len(found.layers) == config.unet.dual_layers


def test_without_a_predictor_every_scale_is_the_adapters(tmp_path, style_files):
    plain = bundle(tmp_path / "plain", scale_predictor=None)
    assert np.all(measure(plain, PROMPTS[:1], style_files[:2]).factors == 1.0)
    half = bundle(tmp_path / "half", scale_predictor=None, scale=0.5)
    found = measure(half, PROMPTS, style_files[:1])
    layers = len(found.layers)
    assert [(s.group, s.mean, s.std) for s in found.series] == [
        ("simple", [0.5] * layers, [0.0] * layers),
        ("long", [0.5] * layers, [0.0] * layers),
    ]


def test_a_predictor_of_known_output_gives_one_plus_its_tanh(tmp_path, style_files):
    predictor = SMALL.adapter.scale_predictor
    config = dataclasses.replace(SMALL, adapter=dataclasses.replace(SMALL.adapter, scale=2.0))
    with BundleWriter(tmp_path / "known", config) as writer:
        for name, shape in parameter_shapes(config).items():
            value = weights.tensor(name, shape.shape)
            if name.startswith("adapter/scale_predictor/out.2/"):
                value = np.full(shape.shape, 0.5 if name.endswith("bias") else 0.0, np.float32)
            writer.add(name, value)
    assert predictor is not None
    found = measure(tmp_path / "known", PROMPTS, style_files[:1])
    # tanh(0.5) = 0.46211716, and 2 (1 + 0.46211716) = 2.92423431
    np.testing.assert_allclose(found.factors, 2.92423431, rtol=1e-6)


def test_mean_and_deviation_are_over_the_prompts_of_a_group(tmp_path):
    factors = [np.float32([[1.0, 2.0], [3.0, 2.0], [0.5, 0.25]])]
    simple, long = series(PROMPTS, [tmp_path / "a.png"], factors)
    assert (simple.group, simple.style) == ("simple", "a.png")
    assert (simple.mean, simple.std) == ([2.0, 2.0], [1.0, 0.0])
    assert (long.group, long.mean, long.std) == ("long", [0.5, 0.25], [0.0, 0.0])
    assert [s.group for s in series(PROMPTS[:2], [tmp_path / "a.png"], factors)] == ["simple"]
    twins = [tmp_path / "x" / "a.png", tmp_path / "y" / "a.png"]
    assert {s.style for s in series(PROMPTS, twins, factors * 2)} == {str(p) for p in twins}


def test_a_simple_prompt_has_at_most_eight_words():
    assert group_of("one two three four five six seven eight") == "simple"
    assert group_of("one two three four five six seven eight nine") == "long"


def test_layers_are_named_with_their_grid():
    layers = dual_layers(ModelConfig())
    assert len(layers) == 16
    grids = [(layer.height, layer.width) for layer in layers]
    # 320x512 pixels are 40x64 latents; two layers a level on the way down, three on the way up.
    levels = [(40, 64), (20, 32), (10, 16)]
    down = [grid for grid in levels for _ in range(2)]
    up = [grid for grid in levels[::-1] for _ in range(3)]
    assert grids == [*down, (5, 8), *up]
    assert layers[0].name == "input_blocks.1.1/transformer_blocks.0/attn2"
    assert layers[6].name.startswith("middle_block.1/")
    deep = dataclasses.replace(TINY.unet, transformer_depth=2)
    predictor = dataclasses.replace(TINY.adapter, scale_predictor=None)
    config = dataclasses.replace(TINY, unet=deep, adapter=predictor)
    assert len(dual_layers(config)) == deep.dual_layers


def test_what_has_no_scales_is_refused(small_bundle, style_files, tmp_path):
    attach = bundle(tmp_path / "attach", fusion="attach")
    with pytest.raises(ValueError, match="has no scales: its style tokens are attached"):
        measure(attach, PROMPTS, style_files[:1])
    with pytest.raises(ImageError, match="cannot read nowhere.png"):
        measure(small_bundle, PROMPTS, [tmp_path.relative_to(tmp_path) / "nowhere.png"])
    config, params = load_bundle(small_bundle, expected=parameter_shapes)
    with BundleWriter(tmp_path / "text", config) as writer:
        for name, value in params.items():
            if name.startswith("text_encoder/"):
                writer.add(name, value)
    with pytest.raises(CheckpointError, match="has no adapter, image_encoder"):
        measure(tmp_path / "text", PROMPTS, style_files[:1])
