import dataclasses
import functools
import pickle

import numpy as np
import pytest

from stylecrafter_jax.data.pipeline import Stream, make_batches
from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.data.sources import Source
from stylecrafter_jax.data.transforms import Drop
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train.experiment import DataConfig
from stylecrafter_jax.train.streams import make_streams
from stylecrafter_jax.world.contents import HELD_OUT_SETS
from stylecrafter_jax.world.scenes import held_out
from stylecrafter_jax.world.source import KINDS, WorldSource, WorldTransform, open_world
from stylecrafter_jax.world.styles import HELD_OUT_FAMILIES, phrase


@functools.cache
def tokenizer():
    return Tokenizer.load()


def items(kind, count, **more):
    source = WorldSource(kind, count, **more)
    return [source[i] for i in range(count)]


def scenes(item):
    return (item.scene, *item.references)


@pytest.mark.parametrize("kind", KINDS)
def test_training_never_sees_what_is_held_out(kind):
    for item in items(kind, 400):
        for scene in scenes(item):
            assert not held_out(scene.content, scene.place, scene.motion)
            assert scene.drawing not in HELD_OUT_SETS
            assert scene.style is None or scene.style.family not in HELD_OUT_FAMILIES


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_split_holds_nothing_else(kind):
    for item in items(kind, 100, split="held_out", drawings=HELD_OUT_SETS):
        scene = item.scene
        assert held_out(scene.content, scene.place, scene.motion)
        assert {one.drawing for one in scenes(item)} == set(HELD_OUT_SETS)
        assert scene.style is None or scene.style.family in HELD_OUT_FAMILIES


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "styled_same"])
def test_references_share_the_style_and_nothing_else(kind):
    for item in items(kind, 200):
        for reference in item.references:
            assert reference.style == item.scene.style
            assert reference.content != item.scene.content
            assert reference.place != item.scene.place
            assert len(reference.track) == 1
            assert reference.motion == ""


def test_without_augmentation_the_reference_is_the_target():
    for item in items("styled_same", 20):
        assert item.scene.style is not None and set(item.references) == {item.scene}


def test_kinds_are_what_they_say():
    assert all(item.scene.style is None for item in items("ordinary", 50) + items("clips", 50))
    assert all(len(item.scene.track) == 8 for item in items("clips", 20))
    assert {len(item.scene.track) for item in items("styled_clips", 9, frames=4)} == {4}
    styled = items("styled", 100)
    assert all(item.scene.style is not None and "," not in item.caption for item in styled)
    looks = items("looks", 600)
    assert 0.6 < np.mean([item.scene.style is not None for item in looks]) < 0.7
    for item in looks:
        words = phrase(item.scene.style) if item.scene.style else None
        assert item.caption.partition(", ")[2] == (words or "")


def test_items_depend_on_kind_seed_and_number_alone():
    source = WorldSource("looks", 10, 3)
    assert isinstance(source, Source)
    copy = pickle.loads(pickle.dumps(source))
    assert copy[7] == source[7] == WorldSource("looks", 99, 3)[7]
    others = source[8], WorldSource("looks", 10, 4)[7], WorldSource("styled", 10, 3)[7]
    assert all(other != source[7] for other in others)
    assert source.id(7) == "world:looks:10:3#7"
    with pytest.raises(IndexError, match="no item 10"):
        source[10]


def test_examples_have_what_the_model_takes():
    rng = np.random.default_rng(0)
    transform = WorldTransform(tokenizer=tokenizer(), drop=Drop(both=1.0), references=2)
    example = transform(WorldSource("styled_clips", frames=4)[0], rng)
    assert {name: (value.shape, value.dtype) for name, value in example.items()} == {
        "pixels": ((4, 64, 64, 3), np.uint8),
        "style": ((2, 64, 64, 3), np.uint8),
        "ids": ((77,), np.int32),
        "fps": ((), np.float32),
        "drop_text": ((), np.bool_),
        "drop_style": ((), np.bool_),
    }
    assert example["fps"] == 8.0
    assert example["drop_text"] and example["drop_style"]
    item = WorldSource("ordinary")[0]
    picture = WorldTransform(tokenizer=tokenizer(), references=0)(item, rng)
    assert set(picture) == {"pixels", "ids", "fps", "drop_text"}
    assert picture["fps"] == 0.0
    np.testing.assert_array_equal(picture["ids"], tokenizer()([item.caption])[0])


def test_specifications_are_read():
    assert open_world("world:styled").name == "world:styled:1000000:0"
    source = open_world("world:looks:500:7")
    assert (len(source), source.name) == (500, "world:looks:500:7")
    assert source[3] == WorldSource("looks", 500, 7)[3]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("world:look", "there is no kind of world 'look'; did you mean 'looks'?"),
        ("world:zzz", "only ordinary, looks"),
        ("world:", "there is no kind of world ''"),
        ("world:looks:many", "must be whole numbers, got 'world:looks:many'"),
        ("world:looks:0", "count >= 1"),
        ("world:looks:5:-1", "seed >= 0"),
        ("world:looks:5:1:2", "KIND"),
        ("looks", "KIND"),
    ],
)
def test_wrong_specifications_are_one_clear_line(spec, message):
    with pytest.raises(DataError) as caught:
        open_world(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_runs_open_worlds():
    data = DataConfig(
        images="world:looks", videos="world:clips", height=64, width=64, frames=6, video_batch=2
    )
    pictures, videos = make_streams(data, tokenizer(), styled=True)
    assert len(videos.source[0].scene.track) == 6
    streams = [
        Stream(source=s.source, transform=s.transform, batch_size=2) for s in (pictures, videos)
    ]
    batches = make_batches(streams, seed=0)
    shapes = {batches[step]["pixels"].shape for step in range(2)}
    assert shapes == {(2, 1, 64, 64, 3), (2, 6, 64, 64, 3)}
    plain, _ = make_streams(data, tokenizer(), styled=False)
    example = plain.transform(plain.source[0], np.random.default_rng(0))
    assert "style" not in example and "drop_style" not in example


def test_smaller_squares_are_cut_at_random():
    source = WorldSource("looks", 4)
    whole = WorldTransform(tokenizer=tokenizer(), references=0)
    part = dataclasses.replace(whole, side=24)
    seen = [part(source[0], np.random.default_rng(i))["pixels"] for i in range(8)]
    assert {pixels.shape for pixels in seen} == {(1, 24, 24, 3)}
    assert len({pixels.tobytes() for pixels in seen}) > 1
    picture = whole(source[0], np.random.default_rng(0))["pixels"][0]
    windows = np.lib.stride_tricks.sliding_window_view(picture, (24, 24, 3)).reshape(-1, 24, 24, 3)
    assert all((windows == pixels[0]).all((1, 2, 3)).any() for pixels in seen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 32}, "64x64 pixels, .* squares; data.height and data.width are 32 and 64"),
        ({"height": 128, "width": 128}, "64x64 pixels, .* are 128 and 128"),
        ({"images": "world:clips"}, "shows clips, it cannot be data.images"),
        ({"videos": "world:looks"}, "shows pictures, it cannot be data.videos"),
        ({"references": 5}, "up to 4 references, got 5"),
    ],
)
def test_unsuitable_worlds_are_refused(changes, message):
    wanted = {"images": "world:looks", "height": 64, "width": 64, **changes}
    with pytest.raises(DataError, match=message):
        make_streams(DataConfig(**wanted), tokenizer(), styled=True)
