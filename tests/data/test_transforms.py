import io

import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.data.decode import decode_image
from stylecrafter_jax.data.records import BadRecord
from stylecrafter_jax.data.transforms import (
    Drop,
    Transform,
    centre_crop,
    cover_size,
    crop_resized,
    drop_flags,
    random_crop,
)
from tests.data.conftest import frame_numbers, image_record, picture, video_record


@pytest.fixture
def small(tokenizer):
    def make(**options):
        sizes = {"size": (32, 32), "style_short_side": 50, "style_size": 32}
        return Transform(tokenizer=tokenizer, **{**sizes, **options})

    return make


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (48, 20)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 37), (37, 100), (20, 33)])
def test_covering_touches_one_side_and_keeps_the_shape(height, width, size):
    h, w = cover_size(height, width, size)
    assert h >= size[0] and w >= size[1] and (h == size[0] or w == size[1])
    exact = max(size[0] / height, size[1] / width)
    assert height * exact - 1 < h <= height * exact + 1e-9
    assert width * exact - 1 < w <= width * exact + 1e-9


@pytest.mark.parametrize(("height", "width"), [(61, 97), (97, 61), (20, 25)])
def test_a_crop_is_the_same_as_resizing_everything_first(height, width):
    image = decode_image(picture(height, width), 999)
    resized = cover_size(height, width, (40, 40))
    whole = np.asarray(image.resize(resized[::-1], Image.Resampling.BILINEAR)).astype(int)
    for top, left in ((0, 0), (resized[0] - 32, resized[1] - 32)):
        ours = crop_resized(image, resized, (top, left), (32, 32))
        assert np.abs(ours - whole[top : top + 32, left : left + 32]).max() <= 1


def test_a_thin_strip_needs_little_memory():
    strip = Image.new("RGB", (200_000, 10))
    assert centre_crop(strip, (512, 512)).shape == (512, 512, 3)


def test_style_crops_are_anywhere_in_the_resized_picture():
    # Red is the row and green the column of the resized picture, so a crop says where it was.
    y, x = np.mgrid[:100, :150]
    image = Image.fromarray(np.stack([y, x, 0 * y], -1).astype(np.uint8))
    draws = rng()
    corners = np.array([random_crop(image, 100, 64, draws)[0, 0, :2] for _ in range(1000)])
    assert corners.min(0).tolist() == [0, 0]
    assert corners.max(0).tolist() == [36, 86]
    np.testing.assert_allclose(corners.mean(0), [18, 43], atol=3)


def test_an_example_has_the_documented_arrays(small):
    example = small(references=2)(image_record(picture(60, 90), "a photo of a cat"), rng())
    shapes = {name: (x.shape, x.dtype.name) for name, x in example.items()}
    assert shapes == {
        "pixels": ((1, 32, 32, 3), "uint8"),
        "style": ((2, 32, 32, 3), "uint8"),
        "ids": ((77,), "int32"),
        "fps": ((), "float32"),
        "drop_text": ((), "bool"),
        "drop_style": ((), "bool"),
    }
    assert example["fps"] == 0.0
    # "a cat" in CLIP's vocabulary, between the start and end ids.
    assert example["ids"][:5].tolist() == [49406, 320, 2368, 49407, 0]


def test_an_example_is_a_function_of_record_and_generator(small):
    transform = small(drop=Drop(text=0.3, style=0.3), flip=0.5)
    record = image_record(picture(60, 90))
    one, two, other = (transform(record, rng(seed)) for seed in (5, 5, 6))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert not np.array_equal(one["style"], other["style"])


def test_target_and_style_are_mirrored_together_where_the_caption_allows(small):
    for caption, mirrored in (("a cat", True), ("a cat on the left", False)):
        record = image_record(picture(60, 90), caption)
        plain, flipped = (small(flip=f).pictures(record, rng(1)) for f in (0.0, 1.0))
        step = -1 if mirrored else 1
        np.testing.assert_array_equal(flipped.pixels, plain.pixels[:, :, ::step])
        np.testing.assert_array_equal(flipped.style, plain.style[:, :, ::step])


def test_own_style_images_replace_the_crop(small):
    grey = [bytes_of(np.full((64, 80, 3), level, np.uint8)) for level in (50, 200)]
    record = image_record(picture(60, 90), styles=tuple(grey))
    style = small(references=3).pictures(record, rng()).style
    levels = [round(float(s.mean())) for s in style]
    assert set(levels[:2]) == {50, 200}
    assert levels[2] == levels[0]


def bytes_of(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def test_clips_give_frames_rate_and_a_style_from_one_of_the_frames(small, clip):
    pictures = small(frames=6, stride=(2, 2), size=(32, 48)).pictures(video_record(clip), rng(2))
    assert pictures.pixels.shape == (6, 32, 48, 3)
    assert pictures.fps == 4.0
    numbers = frame_numbers(pictures.pixels)
    assert np.diff(numbers).tolist() == [2] * 5
    assert frame_numbers(pictures.style)[0] in numbers


def test_one_frame_of_a_clip_is_a_picture(small, clip):
    pictures = small(frames=1).pictures(video_record(clip), rng())
    assert (pictures.pixels.shape[0], pictures.fps) == (1, 0.0)


def test_records_that_do_not_fit_are_refused(small, clip):
    with pytest.raises(BadRecord, match="a picture, wanted a video of 4 frames"):
        small(frames=4)(image_record(picture(60, 90)), rng())
    with pytest.raises(BadRecord, match="20x90 pixels, wanted at least 32"):
        small(min_side=32)(image_record(picture(20, 90)), rng())
    with pytest.raises(BadRecord, match="20x90 pixels are narrower than 1 to 2"):
        small(max_aspect=2.0)(image_record(picture(20, 90)), rng())
    with pytest.raises(BadRecord, match="40 frames, wanted 41"):
        small(frames=41)(video_record(clip), rng())


def test_conditions_are_dropped_at_their_rates():
    drop = Drop(text=0.1, style=0.2, both=0.3)
    generator = rng()
    draws = [drop_flags(drop, generator) for _ in range(20_000)]
    rates = {flags: draws.count(flags) / len(draws) for flags in set(draws)}
    wanted = {(True, False): 0.1, (False, True): 0.2, (True, True): 0.3, (False, False): 0.4}
    for flags, rate in wanted.items():
        assert rates[flags] == pytest.approx(rate, abs=0.015)  # over four standard deviations
    assert {drop_flags(Drop(), generator) for _ in range(100)} == {(False, False)}


@pytest.mark.parametrize(
    "options",
    [{"captions": "x"}, {"stride": (3, 2)}, {"style_size": 99}, {"flip": 2.0}, {"frames": 0}],
)
def test_wrong_settings_are_refused(small, options):
    with pytest.raises(ValueError, match="must be"):
        small(**options)
    with pytest.raises(ValueError, match="sum to at most 1"):
        Drop(text=0.9, both=0.2)
