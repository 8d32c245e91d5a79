"""Bad data of every kind through the pipeline and through training.

A bad record is replaced by the next of its source, counted, and listed with its reason; too many
end the run in one line, with a checkpoint. The expected batches are made of the good data alone.
"""

import io
import json
import shutil
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.checkpoints.store import Store
from stylecrafter_jax.cli import main
from stylecrafter_jax.data import features
from stylecrafter_jax.data.archives import ArrayRecordSource, TarSource
from stylecrafter_jax.data.features import FeatureRecord, FeatureTransform, layout
from stylecrafter_jax.data.folders import FolderSource
from stylecrafter_jax.data.pack import pack
from stylecrafter_jax.data.pipeline import Stream, make_batches
from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.data.shards import Entry, write_shards
from stylecrafter_jax.data.sources import open_source
from stylecrafter_jax.data.transforms import Transform
from tests.data.conftest import numbered_clip, picture
from tests.fuzz.test_bombs import png as gigapixels
from tests.several import write_config
from tests.train.conftest import assert_same_run, changed, saved_steps

RECORDS = 8
BAD = 4  # the record that is damaged; the next one replaces it


def float_tiff(value: float) -> bytes:
    file, pixels = io.BytesIO(), np.full((24, 40), 0.5, np.float32)
    pixels[3, 3] = value
    Image.fromarray(pixels).save(file, "TIFF")
    return file.getvalue()


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def claim_frames(media: bytes) -> bytes:
    at = media.index(b"stsz") + 8
    return media[:at] + struct.pack(">II", 1, 10**7) + media[at + 8 :]


# What is done to a file, and the reason that the report must give.
PICTURES = {
    "corrupt": (lambda path: rewrite(path, lambda b: b[:200] + bytes(300)), "cannot decode"),
    "truncated": (lambda path: rewrite(path, lambda b: b[: len(b) // 2]), "runcated"),
    "no picture": (lambda path: path.write_text("hello"), "not a picture of a known format"),
    "zero bytes": (lambda path: path.write_bytes(b""), "the file has zero bytes"),
    "missing": (lambda path: path.unlink(), "the file is missing"),
    "NaN": (lambda path: path.write_bytes(float_tiff(np.nan)), "floating-point images"),
    "gigapixels": (lambda path: path.write_bytes(gigapixels()), "exceeds limit of"),
    "narrow": (lambda path: path.write_bytes(picture(8, 400)), "narrower than 1 to 16"),
}
VIDEOS = {
    "corrupt": (lambda path: rewrite(path, lambda b: b[:40] + bytes(600) + b[640:]), "video"),
    "truncated": (lambda path: rewrite(path, lambda b: b[: len(b) // 2]), "cannot decode"),
    "a playlist": (lambda path: path.write_text("#EXTM3U\n/etc/passwd\n"), "none of MP4"),
    "a million frames": (lambda path: rewrite(path, claim_frames), "its header counts 10000000"),
    "zero bytes": (lambda path: path.write_bytes(b""), "the file has zero bytes"),
    "too short": (lambda path: numbered_clip(path, 2), "the video has 2 frames"),
}
CAPTIONS = {
    "number": (7, "the caption must be a text, got 7"),
    "list": (["a", "b"], "the caption must be a text"),
    "empty": ("  ", "the caption is empty"),
    "null": (None, "it has no caption"),
    "halves": ("a \ud800", "halves of characters"),
    "megabytes": ("a " * 5_000_000, "wanted at most 10000"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of pictures, one of clips, with captions in a table: the rows are the records."""
    folder = tmp_path_factory.mktemp("good")
    for kind, suffix in (("pictures", "jpg"), ("videos", "mp4")):
        (folder / kind).mkdir()
        for i in range(RECORDS):
            path = folder / kind / f"{i}.{suffix}"
            if kind == "videos":
                numbered_clip(path, 5 + i)
            else:
                path.write_bytes(picture(24 + i, 40, seed=i))
        rows = [{"file": f"{i}.{suffix}", "text": f"thing {i}"} for i in range(RECORDS)]
        write_table(folder / kind, rows)
    return folder


def write_table(folder, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "captions.jsonl").write_text(text)


def stream(source, tokenizer, frames: int = 1) -> Stream:
    transform = Transform(
        tokenizer=tokenizer, size=(8, 8), frames=frames, style_short_side=12, style_size=8
    )
    return Stream(source=source, transform=transform, batch_size=2)


def assert_replaced(found: Stream, whole: Stream, bad: dict[int, str], **options):
    """Compares two epochs of a stream with bad records with what good data say they must be.

    Args:
        found: the stream whose records `bad` are bad.
        whole: the same stream before the damage.
        bad: index -> words of the reason.
        options: of `make_batches`.
    """
    seed, records, epochs = 3, len(whole.source), 2
    steps = range(epochs * records // whole.batch_size)
    with make_batches([whole], seed=seed, **options) as batches:
        order = [i for _ in steps for i in next(batches)["index"].tolist()]
    refusals, wanted = {}, []
    for place, index in enumerate(order):
        while index in bad:
            refusals[index] = refusals.get(index, 0) + 1
            index = (index + 1) % records
        example = whole.example(0, seed, place // records, index)
        wanted.append({**example, "index": np.int64(index)})
    with make_batches([found], seed=seed, max_bad_rate=1.0, **options) as batches:
        taken = [next(batches) for _ in steps]
        ledger, name = batches.ledger, found.source.name
    for row, example in enumerate(wanted):
        batch = taken[row // whole.batch_size]
        assert batch.keys() == example.keys()
        for key, value in example.items():
            np.testing.assert_array_equal(batch[key][row % whole.batch_size], value, err_msg=key)
    assert ledger.refused[name] == sum(refusals.values())
    assert ledger.read[name] == len(order) + sum(refusals.values())
    assert ledger.quarantine[name].keys() == bad.keys()
    for index, fault in ledger.quarantine[name].items():
        assert bad[index] in fault.reason and "\n" not in fault.reason


@pytest.mark.parametrize("kind", PICTURES)
def test_bad_pictures_are_replaced_by_the_next(good, tmp_path, tokenizer, kind):
    damage, reason = PICTURES[kind]
    folder = tmp_path / "pictures"
    shutil.copytree(good / "pictures", folder)
    damage(folder / f"{BAD}.jpg")
    source = open_source(folder)
    whole = stream(open_source(good / "pictures"), tokenizer)
    assert_replaced(stream(source, tokenizer), whole, {BAD: reason})


@pytest.mark.parametrize("kind", VIDEOS)
def test_bad_videos_are_replaced_by_the_next(good, tmp_path, tokenizer, kind):
    damage, reason = VIDEOS[kind]
    folder = tmp_path / "videos"
    shutil.copytree(good / "videos", folder)
    damage(folder / f"{BAD}.mp4")
    whole = stream(open_source(good / "videos"), tokenizer, 3)
    assert_replaced(stream(open_source(folder), tokenizer, 3), whole, {BAD: reason})


@pytest.mark.parametrize("kind", CAPTIONS)
def test_bad_captions_are_replaced_by_the_next(good, tmp_path, tokenizer, kind):
    value, reason = CAPTIONS[kind]
    folder = tmp_path / "pictures"
    shutil.copytree(good / "pictures", folder)
    rows = [{"file": f"{i}.jpg", "text": f"thing {i}"} for i in range(RECORDS)]
    rows[BAD]["text"] = value
    write_table(folder, rows)
    whole = stream(open_source(good / "pictures"), tokenizer)
    assert_replaced(stream(open_source(folder), tokenizer), whole, {BAD: reason})


def test_several_in_a_row_and_worker_processes_change_nothing(good, tmp_path, tokenizer):
    folder = tmp_path / "pictures"
    shutil.copytree(good / "pictures", folder)
    bad = {}
    for index, kind in zip((3, 4, 5, 7), ("corrupt", "zero bytes", "missing", "NaN"), strict=True):
        damage, bad[index] = PICTURES[kind]
        damage(folder / f"{index}.jpg")
    found = stream(open_source(folder), tokenizer)
    assert_replaced(found, stream(open_source(good / "pictures"), tokenizer), bad, threads=3)


@pytest.fixture
def shards(good, tmp_path):
    """The pictures in four shards of two records."""
    out = tmp_path / "shards"
    pack(open_source(good / "pictures"), out, shard_size=2, threads=1)
    return out


def shard(folder, number: int):
    return folder / f"data-{number:05d}-of-00004.array_record"


def test_a_missing_shard_at_the_start_is_named(shards, tokenizer):
    shard(shards, 2).unlink()
    with pytest.raises(DataError, match=r"lacks its shard data-00002-of-00004\.array_record$"):
        open_source(shards)
    shard(shards, 0).unlink()
    (shards / "pack.json").unlink()  # as of shards that somebody else made
    with pytest.raises(DataError, match=r"data-00000-of-00004\.array_record and 1 more$"):
        open_source(shards)
    with pytest.raises(DataError, match=r"cannot read .*gone\.tar: No such file"):
        TarSource([shards / "gone.tar"])


@pytest.mark.parametrize("keep", [0.0, 0.6])
def test_a_shard_that_is_cut_off_at_the_start_is_refused_by_name(shards, keep):
    rewrite(shard(shards, 1), lambda data: data[: int(keep * len(data))])
    with pytest.raises(DataError, match="shards") as error:
        open_source(shards)
    assert "\n" not in str(error.value) and "data-00001-of-00004" in str(error.value)


@pytest.mark.parametrize("way", ["deleted", "truncated", "overwritten"])
def test_a_shard_that_vanishes_in_the_run_is_replaced_and_counted(good, shards, tokenizer, way):
    found = stream(ArrayRecordSource(shards), tokenizer)  # opens a shard when it first reads of it
    path = shard(shards, 2)
    if way == "deleted":
        path.unlink()
    else:
        size = path.stat().st_size
        rewrite(path, lambda data: data[:100] if way == "truncated" else bytes(size))
    whole = stream(open_source(good / "pictures"), tokenizer)
    assert_replaced(found, whole, {4: "cannot read the shard", 5: "cannot read the shard"})


def test_a_record_whose_checksum_is_wrong_is_replaced(good, shards, tokenizer):
    def flip(data: bytes) -> bytes:
        at = data.index(b"thing 4")
        return data[:at] + b"thing X" + data[at + 7 :]

    rewrite(shard(shards, 2), flip)
    found = stream(ArrayRecordSource(shards), tokenizer)
    whole = stream(open_source(good / "pictures"), tokenizer)
    assert_replaced(found, whole, {4: "cannot read the shard"})


def test_when_all_shards_are_gone_the_run_ends_in_one_line(shards, tokenizer):
    found = stream(ArrayRecordSource(shards), tokenizer)
    shutil.rmtree(shards)
    with make_batches([found], seed=0) as batches, pytest.raises(DataError) as error:
        next(batches)
    message = str(error.value)
    assert "8 records of shards in a row cannot be used" in message and "\n" not in message


def write_tar(path, good, records):
    with tarfile.open(path, "w") as archive:
        for i in records:
            media = (good / "pictures" / f"{i}.jpg").read_bytes()
            for name, content in ((f"{i}.jpg", media), (f"{i}.json", caption(i))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def caption(i: int) -> bytes:
    return json.dumps({"caption": f"thing {i}"}).encode()


@pytest.mark.parametrize("way", ["deleted", "truncated"])
def test_a_tar_that_vanishes_in_the_run_is_replaced_and_counted(good, tmp_path, tokenizer, way):
    for name, records in (("a.tar", range(6)), ("b.tar", range(6, RECORDS))):
        write_tar(tmp_path / name, good, records)
    whole = stream(open_source(good / "pictures"), tokenizer)
    found = stream(TarSource(tmp_path), tokenizer)
    path = tmp_path / "b.tar"
    path.unlink() if way == "deleted" else rewrite(path, lambda data: data[:600])
    reason = "the tar is missing" if way == "deleted" else "the tar is cut off"
    assert_replaced(found, whole, {6: reason, 7: reason})


def test_a_tar_that_is_cut_off_at_the_start_loses_its_end_alone(good, tmp_path, tokenizer):
    path = tmp_path / "a.tar"
    write_tar(path, good, range(RECORDS))
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-2]
    rewrite(path, lambda data: data[: last.offset_data + 100])
    found = stream(TarSource(path), tokenizer)
    assert len(found.source) == RECORDS
    whole = stream(open_source(good / "pictures"), tokenizer)
    assert_replaced(found, whole, {RECORDS - 1: "the tar is cut off inside its .jpg"})


def test_features_with_nan_are_replaced(tmp_path):
    """Precomputed features that hold NaN: written by another program than `data encode`."""
    rng = np.random.default_rng(0)

    def record(i: int) -> FeatureRecord:
        arrays = {
            "mean": rng.standard_normal((1, 2, 2, 4)).astype(np.float32),
            "logvar": rng.standard_normal((1, 2, 2, 4)).astype(np.float32),
            "text": rng.standard_normal((3, 4)).astype(np.float32),
            "fps": np.zeros((), np.float32),
        }
        return FeatureRecord(id=str(i), arrays=arrays)

    records = [record(i) for i in range(RECORDS)]
    broken = {name: np.array(x) for name, x in records[BAD].arrays.items()}
    broken["mean"][0, 1, 1, 2] = np.nan
    damaged = [*records[:BAD], FeatureRecord(id="bad", arrays=broken), *records[BAD + 1 :]]
    transform = FeatureTransform(layout=layout(records[0].arrays), styled=False)
    streams = []
    for name, content in (("whole", records), ("damaged", damaged)):

        def entries(indices, content=content):
            for i in indices:
                yield Entry(features.to_bytes(content[i]))

        settings = {"version": features.VERSION, "layout": {}}
        write_shards(
            tmp_path / name, features.FEATURES_FILE, settings, entries, records=8, shard_size=8
        )
        source = open_source(tmp_path / name)
        streams.append(Stream(source=source, transform=transform, batch_size=2))
    assert_replaced(streams[1], streams[0], {BAD: "its mean has values that are not finite"})


# --- `stylecrafter train` ----------------------------------------------------------------------


@pytest.fixture
def bad_pictures(good, tmp_path):
    """The good pictures and one more of each bad kind, with the reason by name."""
    folder, reasons = tmp_path / "some", {}
    shutil.copytree(good / "pictures", folder)
    rows = [{"file": f"{i}.jpg", "text": f"thing {i}"} for i in range(RECORDS)]
    for number, (damage, reason) in enumerate(PICTURES.values()):
        name = f"bad{number}.jpg"
        shutil.copy(good / "pictures" / "0.jpg", folder / name)
        damage(folder / name)
        reasons[name] = reason
        rows.insert(2 * number, {"file": name, "text": "bad"})
    write_table(folder, rows)
    return folder, reasons


@pytest.fixture
def cli(monkeypatch):
    """The command line, without its cache of compiled programs."""
    monkeypatch.setattr("stylecrafter_jax.programs.keep_on_disk", lambda: None)
    return main


def refused(run):
    lines = (run / "refused.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row["reason"] for row in map(json.loads, lines)}


def test_training_goes_on_over_bad_data_and_lists_it(
    toy, cli, experiment, bad_pictures, tmp_path, capsys
):
    folder, reasons = bad_pictures
    some = changed(experiment, data__images=str(folder))
    config = str(write_config(some, tmp_path / "config.py"))
    settings = ("--quiet", "--set", "data.max_bad_rate=1.0", "train.save_every=50")
    for run, steps in (("parts", 3), ("parts", 8), ("straight", 8)):
        arguments = ["train", config, "--out", str(tmp_path / run), *settings]
        assert cli([*arguments, f"train.steps={steps}"]) == 0
    found = refused(tmp_path / "straight")  # an epoch of sixteen records: each was drawn
    assert found.keys() == reasons.keys()
    assert all(reasons[name] in reason for name, reason in found.items())
    assert "reads refused and replaced (8 different records)" in capsys.readouterr().err
    # What was refused before a stop is not counted twice, nor forgotten.
    assert refused(tmp_path / "parts") == found
    assert_same_run(tmp_path / "parts", tmp_path / "straight", some)


@pytest.mark.slow
def test_bad_clips_and_captions_are_counted_by_their_source(
    toy, cli, experiment, good, bad_pictures, tmp_path, capsys
):
    folder = tmp_path / "videos"
    shutil.copytree(good / "videos", folder)
    rows, reasons = [{"file": f"{i}.mp4", "text": f"thing {i}"} for i in range(RECORDS)], {}
    for kind, (damage, reason) in VIDEOS.items():
        name = f"{kind}.mp4"
        shutil.copy(good / "videos" / "1.mp4", folder / name)
        damage(folder / name)
        rows.append({"file": name, "text": "bad"})
        reasons[name] = reason
    for kind, (value, reason) in CAPTIONS.items():
        name = f"caption {kind}.mp4"
        shutil.copy(good / "videos" / "2.mp4", folder / name)
        rows.append({"file": name, "text": value})
        reasons[name] = reason
    write_table(folder, rows)
    both = {"data__images": str(bad_pictures[0]), "data__videos": str(folder), "data__frames": 3}
    # Three tenths of the steps on pictures: twelve of forty, and every clip of an epoch.
    some = changed(experiment, **both, stage="stage2", data__image_share=0.3, train__steps=40)
    config = str(write_config(some, tmp_path / "config.py"))
    settings = ("--quiet", "--set", "data.max_bad_rate=1.0", "train.save_every=50")
    for run, steps in (("parts", 7), ("parts", 40), ("straight", 40)):
        arguments = ["train", config, "--out", str(tmp_path / run), *settings]
        assert cli([*arguments, f"train.steps={steps}"]) == 0
    found = refused(tmp_path / "straight")
    assert found.keys() == reasons.keys() | bad_pictures[1].keys()
    assert all(reason in found[name] for name, reason in (reasons | bad_pictures[1]).items())
    said = capsys.readouterr().err.splitlines()[-1]
    assert "pictures: " in said or "some: " in said
    assert "(12 different records)" in said and "(8 different records)" in said
    assert refused(tmp_path / "parts") == found
    assert_same_run(tmp_path / "parts", tmp_path / "straight", some)


def test_too_much_bad_data_ends_training_with_a_line_and_the_checkpoint(
    toy, cli, experiment, bad_pictures, tmp_path, capsys
):
    folder, reasons = bad_pictures
    config = str(
        write_config(changed(experiment, data__images=str(folder)), tmp_path / "config.py")
    )
    run = tmp_path / "run"
    settings = (
        "--set",
        "data.max_bad_rate=0.03",
        "train.steps=12",
        "train.save_every=50",
        "--quiet",
    )
    assert cli(["train", config, "--out", str(run), *settings]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "more than the share of 0.03 that is allowed" in error
    found = refused(run)
    assert 0 < len(found) <= 4 and found.keys() <= reasons.keys()
    assert 0 < saved_steps(run)[-1] < 12
    # Who allows more goes on as if nothing had been.
    straight, more = tmp_path / "straight", ("--quiet", "--set", "data.max_bad_rate=1.0")
    for out in (run, straight):
        arguments = ["train", config, "--out", str(out), *more, "train.steps=12"]
        assert cli([*arguments, "train.save_every=50"]) == 0
    assert_same_run(run, straight, changed(experiment, data__images=str(folder)))


@pytest.mark.slow
def test_on_mended_data_the_run_goes_on(toy, cli, experiment, bad_pictures, tmp_path):
    folder, reasons = bad_pictures
    config = str(
        write_config(changed(experiment, data__images=str(folder)), tmp_path / "config.py")
    )
    run = tmp_path / "run"
    settings = ("--set", "data.max_bad_rate=0.03", "train.steps=12", "--quiet")
    assert cli(["train", config, "--out", str(run), *settings]) == 1
    for name in reasons:
        shutil.copy(folder / "0.jpg", folder / name)
    assert cli(["train", config, "--out", str(run), *settings]) == 0
    assert saved_steps(run)[-1] == 12


def test_a_missing_shard_leaves_no_run(toy, cli, experiment, shards, tmp_path, capsys):
    shard(shards, 3).unlink()
    config = str(
        write_config(changed(experiment, data__images=str(shards)), tmp_path / "config.py")
    )
    assert cli(["train", config, "--out", str(tmp_path / "run"), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "data-00003-of-00004.array_record" in error
    assert not (tmp_path / "run").exists()


@pytest.fixture
def lose(monkeypatch):
    """Has the first save of a run be the moment at which shards are cut off."""

    def losing(*paths):
        write, whole = Store.save, {path: path.read_bytes() for path in paths}

        def save_and_lose(self, step, *args, **kwargs):
            write(self, step, *args, **kwargs)
            for path, content in whole.items():
                path.write_bytes(content[:100])

        monkeypatch.setattr(Store, "save", save_and_lose)

        def mend():
            monkeypatch.setattr(Store, "save", write)
            for path, content in whole.items():
                path.write_bytes(content)

        return mend

    return losing


@pytest.mark.slow
def test_shards_that_vanish_in_a_run_end_it_with_the_checkpoint(
    toy, cli, experiment, shards, tmp_path, capsys, lose
):
    some = changed(experiment, data__images=str(shards), train__steps=30)
    config = str(write_config(some, tmp_path / "config.py"))
    run, straight = tmp_path / "run", tmp_path / "straight"
    assert cli(["train", config, "--out", str(straight), "--quiet"]) == 0
    mend = lose(*(shard(shards, number) for number in range(4)))
    assert cli(["train", config, "--out", str(run), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "of shards in a row cannot be used" in error
    assert 2 <= saved_steps(run)[-1] < 30
    mend()
    assert cli(["train", config, "--out", str(run), "--quiet"]) == 0
    assert_same_run(run, straight, some)


def test_a_run_goes_on_without_the_shard_that_vanishes(
    toy, cli, experiment, shards, tmp_path, lose
):
    some = changed(experiment, data__images=str(shards), train__steps=20)
    config = str(write_config(changed(some, data__max_bad_rate=1.0), tmp_path / "config.py"))
    lose(shard(shards, 2))
    assert cli(["train", config, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    found = refused(tmp_path / "run")
    assert len(found) == 2 and all("shard" in why for why in found.values())
    assert saved_steps(tmp_path / "run")[-1] == 20


def test_folder_sources_are_what_the_rows_say(good):
    source = open_source(good / "pictures")
    assert isinstance(source, FolderSource)
    assert [source.id(i) for i in range(RECORDS)] == [f"{i}.jpg" for i in range(RECORDS)]
