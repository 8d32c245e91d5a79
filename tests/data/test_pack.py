import json

import pytest

from stylecrafter_jax.data import pack as pack_module
from stylecrafter_jax.data.pack import Requirements, pack
from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.data.sources import open_source
from tests.data.conftest import numbered_clip, picture
from tests.limits import largest_file


@pytest.fixture
def mixed(photos):
    """Fifteen records, four of which cannot be used."""
    numbered_clip(photos / "clip.mp4", 5)
    (photos / "clip.txt").write_text("waves")
    numbered_clip(photos / "short.mp4", 2)
    (photos / "short.txt").write_text("waves")
    (photos / "02.jpg").write_bytes((photos / "02.jpg").read_bytes()[:-60])
    (photos / "05.jpg").write_bytes(b"")
    (photos / "07.txt").unlink()
    return open_source(photos)


REFUSED = {"02.jpg", "05.jpg", "07.jpg", "short.mp4"}


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_everything_usable_is_packed_in_order_and_the_rest_is_told(mixed, tmp_path):
    done = []
    requirements = Requirements(min_frames=3)
    report = pack(
        mixed, tmp_path / "out", shard_size=4, requirements=requirements, progress=done.append
    )
    assert (report.packed, report.shards, report.resumed, sum(done)) == (11, 4, 0, 15)
    packed = open_source(tmp_path / "out")
    ids = [mixed.id(i) for i in range(15) if mixed.id(i) not in REFUSED]
    assert [packed.id(i) for i in range(11)] == ids
    by_id = {mixed.id(i): i for i in range(15)}
    assert all(packed[k] == mixed[by_id[name]] for k, name in enumerate(ids))
    reasons = dict(report.refused)
    assert reasons.keys() == REFUSED
    assert "truncated" in reasons["02.jpg"]
    assert reasons["05.jpg"] == "the file has zero bytes"
    assert reasons["07.jpg"] == "it has no caption"
    assert reasons["short.mp4"] == "the video has 2 frames, wanted 3"
    lines = (tmp_path / "out/refused.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": name, "reason": reason} for name, reason in report.refused
    ]
    notes = json.loads((tmp_path / "out/pack.json").read_text())
    assert (notes["packed"], notes["refused"], notes["complete"]) == (11, 4, True)


def test_packing_goes_on_after_an_interruption_with_the_same_result(mixed, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pack(mixed, whole, shard_size=4)
    check, calls = pack_module.check, []

    def interrupted(record, requirements):
        calls.append(record.id)
        if record.id == "09.jpg":
            raise KeyboardInterrupt
        check(record, requirements)

    monkeypatch.setattr(pack_module, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(mixed, parts, shard_size=4, threads=1)
    left = contents(parts)
    finished = [name for name in left if name.endswith(".array_record")]
    assert "data-00000-of-00004.array_record" in finished
    assert not any(name.startswith(".partial") or "00002" in name for name in left)
    with pytest.raises(DataError, match="not finished"):
        open_source(parts)
    monkeypatch.setattr(pack_module, "check", check)
    report = pack(mixed, parts, shard_size=4, threads=1)
    assert report.resumed == len(finished)
    assert contents(parts) == contents(whole)


def test_the_number_of_threads_changes_nothing(mixed, tmp_path):
    pack(mixed, tmp_path / "one", shard_size=2, threads=1)
    pack(mixed, tmp_path / "many", shard_size=2, threads=5)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_a_shard_of_nothing_usable_is_left_out(photos, tmp_path):
    (photos / "00.jpg").write_bytes(b"")
    report = pack(open_source(photos), tmp_path / "out", shard_size=1)
    assert (report.packed, report.shards) == (12, 12)
    assert len(open_source(tmp_path / "out")) == 12


def test_requirements_refuse_small_and_narrow_pictures(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    for name, size in (("small", (20, 90)), ("narrow", (40, 130)), ("fine", (40, 60))):
        (folder / f"{name}.png").write_bytes(picture(*size, form="PNG"))
        (folder / f"{name}.txt").write_text("x")
    wanted = Requirements(min_side=32, max_aspect=3.0)
    report = pack(open_source(folder), tmp_path / "out", requirements=wanted)
    assert dict(report.refused).keys() == {"small.png", "narrow.png"}


def test_mistakes_are_one_line(mixed, photos, tmp_path):
    pack(mixed, tmp_path / "out")
    with pytest.raises(DataError, match="finished already"):
        pack(mixed, tmp_path / "out")
    with pytest.raises(DataError, match="another shard_size"):
        pack(mixed, tmp_path / "out", shard_size=7)
    with pytest.raises(DataError, match="not an empty folder"):
        pack(mixed, photos)
    for file in photos.glob("*.*"):
        if file.suffix != ".txt":
            file.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 15 records can be used; the first is 00.jpg"):
        pack(open_source(photos), tmp_path / "none")


def test_a_full_disk_is_one_line_and_loses_nothing_that_was_finished(tmp_path):
    folder, out = tmp_path / "f", tmp_path / "out"
    folder.mkdir()
    for i, side in enumerate((30, 30, 900, 30)):
        (folder / f"{i}.bmp").write_bytes(picture(side, side, seed=i, form="BMP"))
        (folder / f"{i}.txt").write_text("x")
    with largest_file(500_000), pytest.raises(DataError, match="cannot write a shard in") as error:
        pack(open_source(folder), out, shard_size=2, threads=1)
    assert "\n" not in str(error.value)
    names = ["data-00000-of-00002.array_record", "done-00000.json", "pack.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    report = pack(open_source(folder), out, shard_size=2)
    assert (report.packed, report.resumed) == (4, 1)
