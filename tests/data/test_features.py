import json
import struct

import numpy as np
import pytest

from stylecrafter_jax.data.features import (
    FEATURES_FILE,
    FeatureRecord,
    FeatureTransform,
    from_bytes,
    is_features,
    layout,
    read_notes,
    to_bytes,
)
from stylecrafter_jax.data.records import BadRecord, DataError
from stylecrafter_jax.data.transforms import Drop, Transform
from tests.data.conftest import image_record, picture


@pytest.fixture
def record():
    rng = np.random.default_rng(0)
    return FeatureRecord(
        id="été.jpg",
        arrays={
            "mean": rng.standard_normal((1, 2, 3, 4)).astype(np.float32),
            "logvar": rng.standard_normal((1, 2, 3, 4)).astype(np.float16),
            "text": rng.standard_normal((5, 2)).astype(np.float32),
            "ids": np.arange(5, dtype=np.int32),
            "fps": np.float32(8)[()].reshape(()),
            "image": rng.standard_normal((6, 2)).astype(np.float32),
        },
    )


def test_bytes_hold_the_features_and_say_what_they_are(record):
    data = to_bytes(record)
    back = from_bytes(data)
    assert back.id == record.id and back.refused is None
    assert layout(back.arrays) == layout(record.arrays)
    for name, array in record.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)
    # Read by hand, as the top of the module tells.
    magic, length = struct.unpack_from("<4sI", data)
    header = json.loads(data[8 : 8 + length])
    assert magic == b"SCFT" and header["arrays"][0] == ["mean", "float32", [1, 2, 3, 4]]
    mean = np.frombuffer(data, "<f4", 24, 8 + length).reshape(1, 2, 3, 4)
    np.testing.assert_array_equal(mean, record.arrays["mean"])


def test_what_was_refused_says_why():
    refused = FeatureRecord(id="a", refused="the file has zero bytes")
    assert from_bytes(to_bytes(refused)) == refused


def damaged(data, old, new):
    assert old in data
    return data.replace(old, new)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "damaged features"),
        (lambda data: b"SCRD" + data[4:], "not features of this package"),
        (lambda data: data[:-1], "damaged features"),
        (lambda data: data + b"x", "should have"),
        (lambda data: data[:40], "damaged features"),
        (lambda data: damaged(data, b'"version":1', b'"version":9'), "version 9"),
        (lambda data: damaged(data, b"float32", b"float64"), "'float64', wanted one of float32"),
        (lambda data: damaged(data, b"[1,2,3,4]", b"[1,2,3,-4"), "damaged features"),
        (lambda data: damaged(data, b"[1,2,3,4]", b"[1,2,3,0]"), "should have"),
        (lambda data: damaged(data, b'"arrays"', b'"arrow"  '), "damaged features"),
    ],
)
def test_damaged_bytes_are_refused(record, damage, reason):
    with pytest.raises(BadRecord, match=reason):
        from_bytes(damage(to_bytes(record)))


def test_an_example_has_what_is_trained_on(record):
    transform = FeatureTransform(layout=layout(record.arrays), styled=True)
    example = transform(record, np.random.default_rng(0))
    assert example.keys() == {"mean", "logvar", "text", "image", "fps", "drop_text", "drop_style"}
    plain = FeatureTransform(layout=layout(record.arrays), styled=False)
    assert plain(record, np.random.default_rng(0)).keys() == example.keys() - {
        "image",
        "drop_style",
    }


def test_drops_are_those_of_the_pictures(record, tokenizer):
    drop = Drop(text=0.3, style=0.3, both=0.2)
    features = FeatureTransform(layout=layout(record.arrays), styled=True, drop=drop)
    pixels = Transform(
        tokenizer=tokenizer, size=(8, 8), style_short_side=16, style_size=8, drop=drop
    )
    seen, photo = set(), image_record(picture(20, 20))
    for seed in range(40):
        one = features(record, np.random.default_rng(seed))
        other = pixels(photo, np.random.default_rng(seed))
        flags = [(x["drop_text"].item(), x["drop_style"].item()) for x in (one, other)]
        assert flags[0] == flags[1]
        seen.add(flags[0])
    assert len(seen) == 4


def test_a_record_unlike_the_others_is_refused(record):
    transform = FeatureTransform(layout=layout(record.arrays), styled=True)
    rng = np.random.default_rng(0)
    less = {name: array for name, array in record.arrays.items() if name != "image"}
    with pytest.raises(BadRecord, match=r"it holds mean .*, wanted .* image float32\[6, 2\]"):
        transform(FeatureRecord(id="a", arrays=less), rng)
    with pytest.raises(BadRecord, match="the file has zero bytes"):
        transform(FeatureRecord(id="a", refused="the file has zero bytes"), rng)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"version": 2}', "version 2, this package reads 1"),
        ('{"version": 1}', "is damaged"),
        ('{"version": 1, "layout": {"mean": 3}}', "is damaged"),
    ],
)
def test_damaged_notes_are_one_line(tmp_path, text, reason):
    assert not is_features(tmp_path)
    (tmp_path / FEATURES_FILE).write_text(text)
    assert is_features(tmp_path)
    with pytest.raises(DataError, match=reason) as error:
        read_notes(tmp_path)
    assert "\n" not in str(error.value)
