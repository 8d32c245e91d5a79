import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from stylecrafter_jax.metrics.clip_scores import (
    BATCH,
    ClipEmbedder,
    centre_square,
    style_score,
    temporal_score,
    text_score,
)

X, Y, XY = np.array([3.0, 0.0]), np.array([0.0, 0.5]), np.array([2.0, 2.0])
COS45 = 0.7071067811865476


@pytest.mark.parametrize(
    "found, wanted",
    [
        (text_score(np.stack([X, X, X]), X), 1.0),
        (text_score(np.stack([X, Y]), XY), COS45),
        (text_score(np.stack([X, XY]), Y), COS45 / 2),
        (text_score(np.stack([X]), -X), -1.0),
        (style_score(np.stack([X, X]), np.stack([X])), 1.0),
        # The length of a reference counts nothing: the mean of the directions of x and y.
        (style_score(np.stack([X, Y]), np.stack([X, Y])), COS45),
        (style_score(np.stack([X]), np.stack([X, Y, X])), 2 / np.sqrt(5)),
        (temporal_score(np.stack([Y, Y, Y])), 1.0),
        (temporal_score(np.stack([X, Y, X])), 0.0),
        (temporal_score(np.stack([X, XY, Y])), COS45),
        (temporal_score(np.stack([X, X, Y])), 0.5),
    ],
)
def test_scores_are_those_computed_by_hand(found, wanted):
    assert_allclose(found, wanted, atol=1e-12)


def test_scores_obey_the_laws_of_cosines():
    rng = np.random.default_rng(0)
    frames, references, prompt = (
        rng.normal(size=(5, 8)),
        rng.normal(size=(3, 8)),
        rng.normal(size=8),
    )
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    lengths = rng.uniform(0.1, 10.0, size=(5, 1))
    order = rng.permutation(5)
    for score, other in ((text_score, prompt), (style_score, references)):
        value = score(frames, other)
        assert abs(value) < 1
        assert_allclose(score(frames @ turn, other @ turn), value, atol=1e-12)
        assert_allclose(score(frames * lengths, other), value, atol=1e-12)
        assert_allclose(score(frames[order], other), value, atol=1e-12)
        assert_allclose(score(-frames, other), -value, atol=1e-12)
    value = temporal_score(frames)
    assert_allclose(temporal_score(frames[::-1]), value, atol=1e-12)
    assert_allclose(temporal_score(frames * lengths), value, atol=1e-12)
    assert_allclose(style_score(frames, prompt[None]), text_score(frames, prompt), atol=1e-12)


def test_one_frame_has_no_neighbour_and_no_direction_no_cosine():
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        temporal_score(np.stack([X]))
    assert np.isnan(text_score(np.stack([0 * X]), X))


def test_an_image_of_the_towers_size_is_left_alone_and_the_centre_is_taken():
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(centre_square(image, 24), image)
    wide = np.zeros((24, 72, 3), np.uint8)
    wide[:, 24:48] = image
    np.testing.assert_array_equal(centre_square(wide, 24), image)
    np.testing.assert_array_equal(
        centre_square(wide.transpose(1, 0, 2), 24), image.transpose(1, 0, 2)
    )
    flat = np.full((31, 50, 3), 77, np.uint8)
    np.testing.assert_array_equal(centre_square(flat, 16), np.full((16, 16, 3), 77))


@pytest.fixture(scope="module")
def embedder(small_bundle):
    return ClipEmbedder.load(small_bundle)


def test_embeddings_have_length_one_and_do_not_depend_on_the_batch(embedder):
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (BATCH + 2, 40, 56, 3), dtype=np.uint8))
    found = embedder.images(images)
    assert found.shape == (BATCH + 2, 20)
    assert_allclose(np.linalg.norm(found, axis=-1), 1.0, atol=1e-6)
    for i in (0, BATCH - 1, BATCH + 1):
        assert_allclose(embedder.images([images[i]])[0], found[i], atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert_allclose(temporal_score(embedder.images([images[0]] * 3)), 1.0, atol=1e-6)
    prompts = [embedder.text(prompt) for prompt in ("a cat", "a dog", "a cat " * 100)]
    assert_allclose(np.linalg.norm(prompts, axis=-1), 1.0, atol=1e-6)
    assert np.abs(prompts[0] - prompts[1]).max() > 1e-3


def test_a_folder_without_clip_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no bundle"):
        ClipEmbedder.load(tmp_path)
