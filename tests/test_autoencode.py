import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from stylecrafter_jax import autoencode
from stylecrafter_jax.autoencode import decode_frames, encode_frames

RNG = np.random.default_rng(0)
PIXELS = RNG.standard_normal((2, 3, 8, 12, 3), dtype=np.float32)
LATENTS = jnp.asarray(RNG.standard_normal((2, 3, 9, 14, 4), dtype=np.float32))


def encode(x):
    """Every fourth pixel is the mean, the next one the log-variance."""
    return x[:, ::4, ::4], x[:, 1::4, 1::4]


def decode(z):
    """Nearest upsampling by two of a function of each latent alone."""
    y = jnp.tanh(z[..., :3]) + z[..., 3:]
    return jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2)


def decoded(latents=LATENTS, function=decode, scale_factor=0.5, **options):
    return decode_frames(function, latents, scale_factor=scale_factor, factor=2, **options)


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 6, 100])
def test_chunk_size_does_not_matter(chunk):
    z = encode_frames(encode, PIXELS, scale_factor=0.5, chunk=chunk)
    assert_allclose(z, 0.5 * PIXELS[:, :, ::4, ::4], rtol=1e-6)
    assert_allclose(decoded(chunk=chunk), decoded(chunk=6), rtol=1e-6)


@pytest.mark.parametrize("chunk", [2, 4])
def test_every_call_has_the_same_shape(chunk):
    shapes = []
    decoded(function=lambda z: (shapes.append(z.shape), decode(z))[1], chunk=chunk)
    assert shapes == [(chunk, 9, 14, 4)] * -(-6 // chunk)


def test_latents_are_scaled_on_the_way_in_and_out():
    wanted = np.stack([decode(video / 0.25) for video in LATENTS])
    assert_allclose(decoded(scale_factor=0.25), wanted, rtol=1e-6)
    z = encode_frames(encode, PIXELS, scale_factor=3.0)
    assert_allclose(z, 3.0 * encode_frames(encode, PIXELS, scale_factor=1.0), rtol=1e-6)


def test_noise_moves_the_latents_by_deviations_from_the_mean():
    mean, logvar = PIXELS[:, :, ::4, ::4], PIXELS[:, :, 1::4, 1::4]
    noise = RNG.standard_normal(mean.shape, dtype=np.float32)
    found = encode_frames(encode, PIXELS, scale_factor=0.5, chunk=4, noise=noise)
    assert_allclose(found, 0.5 * (mean + np.sqrt(np.exp(logvar)) * noise), rtol=1e-5, atol=1e-6)
    none = encode_frames(encode, PIXELS, scale_factor=0.5, noise=np.zeros_like(noise))
    assert_allclose(none, 0.5 * mean, rtol=1e-6)


@pytest.mark.parametrize("tile", [3, 4, 8, 9, 13, 14, 50])
def test_tiles_of_a_pointwise_decoder_are_the_whole(tile):
    assert_allclose(decoded(tile=tile), decoded(), atol=1e-5)


def test_tiles_are_no_larger_than_asked():
    shapes = set()
    decoded(function=lambda z: (shapes.add(z.shape), decode(z))[1], tile=4, chunk=3)
    assert shapes == {(3, 4, 4, 4)}
    shapes.clear()
    decoded(function=lambda z: (shapes.add(z.shape), decode(z))[1], tile=10, chunk=1)
    assert shapes == {(1, 9, 10, 4)}


def test_a_tile_as_large_as_the_frame_is_no_tile():
    shapes = set()
    decoded(function=lambda z: (shapes.add(z.shape), decode(z))[1], tile=14)
    assert shapes == {(4, 9, 14, 4)}


def test_a_seam_is_a_blend_of_both_tiles():
    latents = jnp.zeros((1, 1, 8, 14, 4))
    calls = iter(range(100))

    def numbered(z):
        """Gives every tile a constant of its own."""
        return jnp.full((1, 16, 16, 3), float(next(calls)))

    row = decoded(latents, numbered, tile=8, chunk=1)[0, 0, 0, :, 0]
    assert row[0] == 0.0 and row[-1] == 1.0
    assert np.all(np.diff(row) >= 0.0)
    assert np.diff(row).max() < 0.5


@given(length=st.integers(1, 300), tile=st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_tiles_cover_a_side_and_overlap(length, tile):
    tile = min(tile, length)
    starts = list(autoencode._starts(length, tile))
    assert starts[0] == 0 and starts[-1] == length - tile
    steps = np.diff(starts)
    assert np.all(steps > 0)
    assert np.all(steps <= max(1, tile * (1 - autoencode.OVERLAP)))


@given(length=st.integers(1, 600))
@settings(max_examples=200, deadline=None)
def test_blending_weights_are_positive_and_symmetric(length):
    ramp = autoencode._ramp(length)
    assert ramp.shape == (length,)
    assert np.all((0.0 < ramp) & (ramp <= 1.0))
    assert_allclose(ramp, ramp[::-1])
    assert ramp.max() == 1.0
