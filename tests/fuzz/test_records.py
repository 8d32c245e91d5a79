"""Training records and what they lie in: our own bytes, features, ArrayRecord shards, tars."""

import io
import json
import os
import struct
import tarfile

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stylecrafter_jax.data import features, records
from stylecrafter_jax.data.archives import ArrayRecordSource, TarSource
from stylecrafter_jax.data.features import FeatureRecord
from stylecrafter_jax.data.pack import pack
from stylecrafter_jax.data.records import BadRecord, DataError, Record
from stylecrafter_jax.data.sources import open_source
from tests.data.conftest import picture
from tests.fuzz.laws import bytes_like, fuzzed, nothing_left, read_or_refused
from tests.fuzz.values import JSON

RECORD = Record(kind="image", media=b"media", caption="a cat", id="1", styles=(b"one", b"two"))
FEATURES = FeatureRecord(
    id="1",
    arrays={"mean": np.ones((1, 2, 2, 4), np.float16), "ids": np.arange(5, dtype=np.int32)},
)


def with_header(magic: bytes, header, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<4sI", magic, len(text)) + text + rest


def headers(fields: dict):
    """Headers with some of the fields of the right kind, and any values."""
    likely = st.fixed_dictionaries({}, optional={n: v | JSON for n, v in fields.items()})
    return likely | JSON


SIZE = st.integers(-3, 12) | st.sampled_from([2**31, 2**63, 10**30, 1.5, -(2**40)])
RECORD_HEADERS = headers(
    {
        "version": st.just(1),
        "kind": st.just("image"),
        "caption": st.just("a cat"),
        "id": st.just("1"),
        "sizes": st.lists(SIZE, max_size=4),
    }
)
ARRAY = st.tuples(
    st.sampled_from(["mean", ""]),
    st.sampled_from(["float32", "float16", "int32", "object", "O", "<f4"]),
    st.lists(SIZE, max_size=4),
)
FEATURE_HEADERS = headers(
    {
        "version": st.just(1),
        "id": st.just("1"),
        "arrays": st.lists(ARRAY.map(list) | JSON, max_size=2),
        "refused": st.text(max_size=3),
    }
)


@fuzzed(200)
@given(
    bytes_like(records.to_bytes(RECORD))
    | st.builds(with_header, st.just(records.MAGIC), RECORD_HEADERS, st.binary(max_size=12))
)
def test_damaged_records(data):
    found, _ = read_or_refused(lambda: records.from_bytes(data), BadRecord, megabytes=256)
    if found is not None:
        parts = (found.media, *found.styles)
        assert all(isinstance(part, bytes) for part in parts)
        assert found.caption.strip() and isinstance(found.id, str)
        assert sum(map(len, parts)) <= len(data)


@fuzzed(200)
@given(
    bytes_like(features.to_bytes(FEATURES))
    | st.builds(with_header, st.just(features.MAGIC), FEATURE_HEADERS, st.binary(max_size=12))
)
def test_damaged_features(data):
    found, _ = read_or_refused(lambda: features.from_bytes(data), BadRecord, megabytes=256)
    if found is not None:
        assert isinstance(found.id, str)
        assert all(array.dtype.name in features.DTYPES for array in found.arrays.values())


def test_damaged_notes_of_features(tmp_path):
    path = tmp_path / features.FEATURES_FILE
    whole = json.dumps({"version": 1, "layout": {"mean": ["float32", [1, 2]]}, "records": 3})

    @fuzzed(80)
    @given(bytes_like(whole.encode()) | JSON.map(lambda v: json.dumps(v).encode()))
    def law(data):
        path.write_bytes(data)
        read_or_refused(lambda: features.read_notes(tmp_path), DataError, name=path.name)

    law()


def test_damaged_shards(photos, tmp_path):
    pack(open_source(photos), tmp_path / "shards", threads=1)
    (shard,) = (tmp_path / "shards").glob("*.array_record")
    whole, path = shard.read_bytes(), tmp_path / "x.array_record"

    @fuzzed(60, long=3000)
    @given(bytes_like(whole))
    def law(data):
        path.write_bytes(data)
        with nothing_left(tmp_path):
            source, _ = read_or_refused(lambda: ArrayRecordSource(path), DataError, name=path.name)
            for index in range(0 if source is None else min(len(source), 20)):
                read_or_refused(lambda index=index: source[index], BadRecord)
                assert isinstance(source.id(index), str)

    law()


def tar(*members: tuple[str, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def test_damaged_tars(tmp_path):
    media = picture(12, 20)
    members = (("a/1.jpg", media), ("a/1.txt", b"a cat"), ("a/2.jpg", media), ("a/2.json", b"{}"))
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    long = (("x" * 120 + "é.jpg", media), *members)
    path = tmp_path / "x.tar"

    wholes = [tar(*long, format=form) for form in formats[1:]] + [tar(*members, format=formats[0])]

    @fuzzed(150)
    @given(bytes_like(*wholes))
    def law(data):
        path.write_bytes(data)
        with nothing_left(tmp_path):
            source, _ = read_or_refused(lambda: TarSource(path), DataError, name=path.name)
            for index in range(0 if source is None else len(source)):
                assert isinstance(source.id(index), str)
                found, _ = read_or_refused(lambda index=index: source[index], BadRecord)
                assert found is None or found.caption.strip()

    law()
    assert os.listdir(tmp_path) == ["x.tar"]
