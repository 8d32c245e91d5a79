import jax
import numpy as np
import pytest

from stylecrafter_jax.judges.judging import CHUNK, CLIPS, PICTURES, Judges
from stylecrafter_jax.models.judge import init_params
from stylecrafter_jax.world.contents import CONTENTS
from stylecrafter_jax.world.scenes import FRAMES, MOTIONS


@pytest.fixture(scope="module")
def judges():
    """Judges before training."""
    keys = jax.random.split(jax.random.key(0))
    draw = jax.jit(init_params, static_argnums=(0, 1))
    parts = draw(PICTURES, 3, keys[0]), draw(CLIPS, 3 * FRAMES, keys[1])
    return Judges(*(jax.tree.map(np.asarray, part) for part in parts))


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (3, FRAMES, 64, 64, 3), dtype=np.uint8)


def test_contents_and_motions_are_log_probabilities(judges, clips):
    contents, motions = judges.contents(clips[0]), judges.motions(clips)
    assert contents.shape == (FRAMES, len(CONTENTS)) and motions.shape == (3, len(MOTIONS))
    for rows in (contents, motions):
        np.testing.assert_allclose(np.exp(rows).sum(-1), 1.0, rtol=1e-5)


def test_style_embeddings_have_length_one(judges, clips):
    np.testing.assert_allclose(np.linalg.norm(judges.styles(clips[0]), axis=-1), 1.0, rtol=1e-5)


def test_a_picture_is_judged_alike_in_any_company(judges, clips):
    many = np.concatenate([clips[0]] * (CHUNK // FRAMES + 1))
    alone = judges.contents(clips[0][:1])
    np.testing.assert_allclose(
        judges.contents(many)[[0, FRAMES, -FRAMES]], alone.repeat(3, 0), rtol=1e-4, atol=1e-5
    )


def test_order_of_frames_counts(judges, clips):
    assert not np.allclose(judges.motions(clips), judges.motions(clips[:, ::-1]), atol=1e-4)


def test_other_lengths_of_clips_are_refused(judges, clips):
    with pytest.raises(ValueError, match="clips of 8 frames, got"):
        judges.motions(clips[:, :4])
