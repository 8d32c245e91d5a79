import numpy as np
import pytest

from stylecrafter_jax.data.pack import Requirements
from stylecrafter_jax.data.sources import open_source
from stylecrafter_jax.data.survey import describe, sheet, survey
from stylecrafter_jax.data.transforms import Transform
from tests.data.conftest import image_record, numbered_clip, picture, video_record


def test_counts_and_sizes_are_those_of_the_files(photos, tokenizer):
    numbered_clip(photos / "clip.mp4", 7)
    (photos / "clip.txt").write_text("waves " * 100)
    numbered_clip(photos / "short.mp4", 2)
    (photos / "short.txt").write_text("waves")
    (photos / "00.style.jpg").write_bytes(picture(9, 9))
    (photos / "01.jpg").write_bytes(picture(5000, 2500, seed=1))
    source = open_source(photos)
    found = survey(source, range(15), tokenizer, requirements=Requirements(min_frames=3))
    assert (found.records, found.images, found.videos, found.own_styles) == (15, 13, 1, 1)
    assert found.refused == [("short.mp4", "the video has 2 frames, wanted 3")]
    assert found.sides == [24, 2500, *range(26, 37), 32]
    assert found.aspects[:2] == [40 / 24, 2.0]
    assert (found.frames, found.rates) == ([7], [8.0])
    assert found.bytes[0] == (photos / "00.jpg").stat().st_size
    # "thing 0" is two tokens between two marks; every picture is "a painting of ...".
    assert found.tokens[0] == 4
    assert (found.changed, found.cut) == (13, 1)


def test_the_description_has_the_numbers_and_the_refusals(photos, tokenizer):
    (photos / "00.jpg").write_bytes(b"")
    text = describe(survey(open_source(photos), range(13), tokenizer))
    lines = text.splitlines()
    assert lines[0] == "photos: 13 records, 13 looked at"
    assert lines[1].startswith("12 pictures, 0 videos, 1 refused")
    assert lines[-1] == "refused: 00.jpg: the file has zero bytes"
    (side,) = (line for line in lines if line.startswith("shorter side"))
    assert side.split() == ["shorter", "side", "25", "30.5", "36"]


def test_the_sheet_shows_style_target_and_caption_of_each_example(tokenizer, clip):
    transform = Transform(
        tokenizer=tokenizer, size=(32, 48), style_short_side=40, style_size=32, frames=1
    )
    rng = np.random.default_rng(0)
    still = transform.pictures(image_record(picture(60, 90), "a cat"), rng)
    moving = Transform(
        tokenizer=tokenizer, size=(32, 48), style_short_side=40, style_size=32, frames=8
    ).pictures(video_record(clip, "waves"), rng)
    page = sheet([still, moving], tile=32)
    assert page.shape[0] == 2 * 38
    np.testing.assert_array_equal(page[:32, :32], still.style[0])
    np.testing.assert_array_equal(page[:32, 38:86], still.pixels[0])
    for k, frame in enumerate((0, 2, 5, 7)):
        left = 38 + 54 * k
        np.testing.assert_array_equal(page[38:70, left : left + 48], moving.pixels[frame])
    text = page[:32, 38 + 54 * 4 :]
    assert text.min() < 100  # the caption, dark on white
    with pytest.raises(ValueError, match="no example"):
        sheet([])
