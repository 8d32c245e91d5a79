import dataclasses
import itertools

import numpy as np
import pytest

from stylecrafter_jax.world.drawing import draw
from stylecrafter_jax.world.scenes import PLACES, draw_background, lay_out, sample_scene
from stylecrafter_jax.world.styles import (
    FAMILIES,
    HELD_OUT_FAMILIES,
    HUES,
    ONE_HUE,
    TRAIN_FAMILIES,
    apply_style,
    colour_word,
    phrase,
    sample_style,
)


def histogram(pixels):
    """Returns shares of 4x4x4 colours."""
    index = (pixels.reshape(-1, 3) // 64).astype(int) @ (16, 4, 1)
    return np.bincount(index, minlength=64) / len(index)


def test_families_are_trained_on_or_held_out():
    assert len(FAMILIES) >= 24
    assert set(TRAIN_FAMILIES) | set(HELD_OUT_FAMILIES) == set(FAMILIES)
    assert not set(TRAIN_FAMILIES) & set(HELD_OUT_FAMILIES)
    assert len(HELD_OUT_FAMILIES) == 5
    assert set(ONE_HUE) <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_style_changes_colours_alone(family):
    rng = np.random.default_rng(0)
    for place in PLACES:
        style = sample_style(rng, [family])
        scene = sample_scene(rng, places=[place], held=None)
        rgb, alpha = lay_out(draw_background(place, scene.seed), scene, 0)
        before = rgb.copy(), alpha.copy()
        styled = apply_style(rgb, alpha, style)
        assert styled.shape == rgb.shape
        assert styled.dtype == np.float32
        assert 0.0 <= styled.min() < styled.max() <= 1.0
        np.testing.assert_array_equal(rgb, before[0])
        np.testing.assert_array_equal(alpha, before[1])
        np.testing.assert_array_equal(styled, apply_style(rgb, alpha, style))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_object_stands_out_in_every_place(family):
    # What an eye needs: the object's border is a border of the picture. Measured where the object
    # is against the same styled place without it.
    rng = np.random.default_rng(5)
    for place in PLACES:
        style = sample_style(rng, [family])
        scene = sample_scene(rng, places=[place], held=None)
        background = draw_background(place, scene.seed)
        rgb, alpha = lay_out(background, scene, 0)
        styled = apply_style(rgb, alpha, style)
        empty = apply_style(background, np.zeros_like(alpha), style)
        change = np.abs(styled - empty).mean(-1)
        assert change[alpha > 0.5].mean() > 0.1, place


@pytest.mark.parametrize("family", FAMILIES)
def test_scenes_of_one_instance_share_a_palette(family):
    rng = np.random.default_rng(1)
    day = [place for place in PLACES if place != "at night"]
    styles = [sample_style(rng, [family]) for _ in range(6)]
    scenes = [
        [histogram(draw(sample_scene(rng, places=day, held=None, style=s))) for _ in range(3)]
        for s in styles
    ]

    def distance(a, b):
        return 0.5 * np.abs(a - b).sum()

    same = [distance(a, b) for one in scenes for a, b in itertools.combinations(one, 2)]
    other = [distance(x[0], y[0]) for x, y in itertools.combinations(scenes, 2)]
    assert np.mean(same) < 0.8 * np.mean(other)


def test_instances_have_one_of_twelve_main_hues():
    rng = np.random.default_rng(2)
    styles = [sample_style(rng) for _ in range(400)]
    hues = np.array([style.parameters.main for style in styles]) * HUES
    assert np.abs(hues - np.round(hues)).max() <= 0.2 + 1e-6
    assert len(set(np.round(hues).astype(int) % HUES)) == HUES
    assert {style.family for style in styles} == set(TRAIN_FAMILIES)


def test_phrases_name_the_colours():
    words = [colour_word(hue / HUES) for hue in range(HUES)]
    assert words == "red orange yellow green green green cyan blue blue purple pink pink".split()
    assert colour_word(0.99) == "red"
    rng = np.random.default_rng(3)
    for _ in range(300):
        style = sample_style(rng)
        said = phrase(style)
        assert said.endswith(style.family)
        colours = said.removesuffix(style.family).split()
        if style.family in ONE_HUE:
            assert colours == [colour_word(style.parameters.main)]
        else:
            first, _, second = colours
            assert first != second


def test_texture_belongs_to_the_instance():
    rng = np.random.default_rng(4)
    style = sample_style(rng, ["risograph"])
    scene = sample_scene(rng, style=style)
    reseeded = dataclasses.replace(scene, style=dataclasses.replace(style, seed=style.seed + 1))
    assert (draw(scene) != draw(reseeded)).any()
