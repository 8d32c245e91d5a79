import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax.judges import training
from stylecrafter_jax.judges.judging import CLIPS, PICTURES, Judges, load_judges
from stylecrafter_jax.judges.training import (
    ClipTransform,
    PictureTransform,
    clip_loss,
    picture_loss,
    worn,
)
from stylecrafter_jax.models.judge import init_params
from stylecrafter_jax.world.contents import CONTENTS
from stylecrafter_jax.world.scenes import FRAMES, MOTIONS
from stylecrafter_jax.world.source import WorldSource


def batch(source, transform, size):
    examples = [transform(source[i], np.random.default_rng(i)) for i in range(size)]
    return {name: jnp.asarray(np.stack([e[name] for e in examples])) for name in examples[0]}


def untold(network, channels):
    """Weights whose heads answer zero, whatever they see."""
    params = jax.jit(init_params, static_argnums=(0, 1))(network, channels, jax.random.key(0))
    heads = tuple(name for name, _ in network.heads)
    return {
        name: jnp.zeros_like(v) if name.split("/")[0] in heads else v for name, v in params.items()
    }


def test_pairs_share_a_style_and_not_a_content():
    rows = batch(WorldSource("styled", 8), PictureTransform(), 8)
    assert rows["pixels"].shape == (8, 2, 64, 64, 3) and rows["pixels"].dtype == jnp.uint8
    assert (rows["content"][:, 0] != rows["content"][:, 1]).all()
    assert (rows["styled"] == 1).all()
    assert (batch(WorldSource("ordinary", 2), PictureTransform(), 2)["styled"] == 0).all()


def test_who_knows_nothing_pays_the_logarithm():
    of_clips, of_pictures = jax.jit(clip_loss), jax.jit(picture_loss)
    params = untold(CLIPS, 3 * FRAMES)
    value, _ = of_clips(params, batch(WorldSource("clips", 3), ClipTransform(), 3))
    np.testing.assert_allclose(value, math.log(len(MOTIONS)), rtol=1e-5)
    # Equal style embeddings find one of b; ordinary pictures have no style to find.
    params = untold(PICTURES, 3) | {"style/bias": jnp.ones(64)}
    value, _ = of_pictures(params, batch(WorldSource("styled", 4), PictureTransform(), 4))
    np.testing.assert_allclose(value, math.log(len(CONTENTS)) + math.log(4), rtol=1e-5)
    value, _ = of_pictures(params, batch(WorldSource("ordinary", 4), PictureTransform(), 4))
    np.testing.assert_allclose(value, math.log(len(CONTENTS)), rtol=1e-5)


def test_wear_keeps_shape_and_grey_level():
    grey = np.full((2, 64, 64, 3), 120, np.uint8)
    seen = [worn(grey, np.random.default_rng(i)) for i in range(12)]
    assert all(pixels.shape == grey.shape and pixels.dtype == np.uint8 for pixels in seen)
    assert any((pixels != grey).any() for pixels in seen)
    assert any((pixels == grey).all() for pixels in seen)
    assert all(abs(pixels.mean() - 120) < 2 for pixels in seen)


def test_a_constant_answer_is_right_by_chance():
    """Names and styles of all kinds are measured."""

    class Constant(Judges):
        def contents(self, pictures):
            return np.eye(len(CONTENTS))[np.zeros(len(pictures), int)]

        def styles(self, pictures):
            return pictures.reshape(len(pictures), -1).astype(np.float64)

        def motions(self, clips):
            return np.eye(len(MOTIONS))[np.zeros(len(clips), int)]

    found = training.measure(Constant({}, {}), 40)
    for name in ("content_styled", "content_held_out_styles", "content_held_out_drawings"):
        assert found[name] < 0.25
    assert found["motion_styled"] < 0.5
    assert set(found) == {
        *(f"content_{kind}" for kind in ("ordinary", "styled", "held_out_styles")),
        "content_held_out_drawings",
        *(
            f"{what}_{kind}"
            for what in ("style", "motion")
            for kind in ("styled", "held_out_styles")
        ),
    }


@pytest.mark.slow
def test_judges_learn():
    """A few hundred steps of the picture judge beat chance by far on pictures it has not seen."""
    # Of the first weights, the average that is measured still holds 0.99^100 = 37 % after 100.
    judges = training.train(400, 2)
    assert training.measure(judges, 100)["content_styled"] > 4 / len(CONTENTS)


def test_written_judges_read_back(tmp_path):
    pictures = init_params(PICTURES, 3, jax.random.key(0))
    clips = init_params(CLIPS, 3 * FRAMES, jax.random.key(1))
    training.write(Judges(pictures, clips), tmp_path / "judges.safetensors")
    found = load_judges(tmp_path / "judges.safetensors")
    assert found.pictures.keys() == pictures.keys() and found.clips.keys() == clips.keys()
    for name, value in pictures.items():
        np.testing.assert_allclose(found.pictures[name], value, rtol=1e-3, atol=1e-4)
