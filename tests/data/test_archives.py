import io
import json
import pickle
import tarfile

import pytest

from stylecrafter_jax.data.archives import ArrayRecordSource, TarSource
from stylecrafter_jax.data.pack import pack
from stylecrafter_jax.data.records import BadRecord, DataError
from stylecrafter_jax.data.sources import open_source
from tests.data.conftest import picture

PICTURES = [picture(20 + i, 30, seed=i) for i in range(4)]


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def tars(tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    write_tar(
        folder / "0.tar",
        [
            ("./a/0.jpg", PICTURES[0]),
            ("./a/0.txt", b"raw caption"),
            ("./a/0.txt_blip", b"zero"),
            ("./a/1.json", json.dumps({"caption": "one", "width": 3}).encode()),
            ("./a/1.jpg", PICTURES[1]),
            ("./a/1.style.jpg", PICTURES[3]),
        ],
    )
    write_tar(
        folder / "1.tar",
        [("long/" * 30 + "2.jpg", PICTURES[2]), ("long/" * 30 + "2.txt", b"two")],
    )
    return folder


def test_tar_samples_are_read_by_their_place(tars):
    source = pickle.loads(pickle.dumps(open_source(tars)))
    assert isinstance(source, TarSource)
    records = [source[i] for i in (2, 0, 1)]
    assert [record.caption for record in records] == ["two", "zero", "one"]
    assert [record.media for record in records] == [PICTURES[2], PICTURES[0], PICTURES[1]]
    assert [record.styles for record in records] == [(), (), (PICTURES[3],)]
    assert [source.id(i) for i in range(3)] == [
        "0.tar/a/0",
        "0.tar/a/1",
        "1.tar/" + "long/" * 30 + "2",
    ]


def test_a_cut_tar_keeps_what_is_whole_and_counts_its_missing_end(tmp_path):
    whole = tmp_path / "whole.tar"
    write_tar(
        whole, [(f"{i}.{s}", d) for i in range(4) for s, d in (("txt", b"c"), ("jpg", PICTURES[i]))]
    )
    with tarfile.open(whole) as tar:
        begins = [(info.name, info.offset, info.offset_data) for info in tar]
    data = whole.read_bytes()
    inside = tmp_path / "inside.tar"
    inside.write_bytes(data[: begins[-1][2] + 100])  # in the last picture
    source = TarSource(inside)
    assert len(source) == 4
    assert source[2].media == PICTURES[2]
    with pytest.raises(BadRecord, match="cut off inside its .jpg"):
        source[3]
    between = tmp_path / "between.tar"
    between.write_bytes(data[: begins[-2][1] + 100])  # in the header of the last caption
    source = TarSource(between)
    assert len(source) == 4
    with pytest.raises(BadRecord, match="the tar is cut off or damaged here"):
        source[3]


def test_wrong_samples_are_refused_with_a_reason(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(
        path,
        [
            ("0.txt", b"no picture"),
            ("1.jpg", PICTURES[0]),
            ("2.jpg", PICTURES[0]),
            ("2.txt", b"caf\xe9"),
            ("3.jpg", PICTURES[0]),
            ("3.json", b"{"),
            ("4.jpg", b""),
            ("4.txt", b"empty"),
        ],
    )
    source = TarSource(path)
    reasons = ("wanted one picture", "no caption", "not UTF-8", "not JSON", "zero bytes")
    assert len(source) == len(reasons)
    for i, reason in enumerate(reasons):
        with pytest.raises(BadRecord, match=reason):
            source[i]


def test_tars_without_samples_or_with_compression_are_one_line(tmp_path, tars):
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(DataError, match="no samples"):
        TarSource(tmp_path / "empty.tar")
    assert len(TarSource([tmp_path / "empty.tar", tars / "0.tar"])) == 3
    write_tar(tmp_path / "none.tar", [])
    with pytest.raises(DataError, match="no samples"):
        TarSource(tmp_path / "none.tar")
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(tars / "0.tar")
    with pytest.raises(DataError, match="compressed"):
        TarSource(tmp_path / "packed.tar")


def test_shards_hold_what_was_packed(photos, tmp_path):
    folder = open_source(photos)
    pack(folder, tmp_path / "packed", shard_size=5)
    source = pickle.loads(pickle.dumps(open_source(tmp_path / "packed")))
    assert isinstance(source, ArrayRecordSource)
    assert len(source) == 13
    assert [source[i] for i in (12, 0)] == [folder[12], folder[0]]
    assert source.id(7) == "07.jpg"


def test_damaged_shards_are_noticed(photos, tmp_path):
    pack(open_source(photos), tmp_path / "packed", shard_size=100)
    (shard,) = (tmp_path / "packed").glob("data-*")
    data = shard.read_bytes()
    at = data.index(b"a painting of thing 6") if b"a painting of thing 6" in data else 3000
    shard.write_bytes(data[:at] + b"#" + data[at + 1 :])
    source = open_source(tmp_path / "packed")
    refused = 0
    for i in range(len(source)):
        try:
            source[i]
        except BadRecord:
            refused += 1
    assert refused == 1
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot read the shards of packed, data-00000-of-00001"):
        open_source(tmp_path / "packed")
