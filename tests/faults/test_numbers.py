"""Losses that are not finite or stand out, and data that come late, are seen and named."""

import io
import time

import pytest
from PIL import Image

from stylecrafter_jax.data.folders import FolderSource
from stylecrafter_jax.train import setup
from stylecrafter_jax.train.loop import train
from stylecrafter_jax.train.metrics_log import SKIPPED, SPIKES, read_metrics
from stylecrafter_jax.train.spikes import FEWEST
from tests.data.conftest import picture
from tests.several import finish, launch, write_config
from tests.train.conftest import (
    assert_same_run,
    assert_same_training,
    changed,
    toy_build_step,
)


def flat(level: int) -> bytes:
    """A picture of one grey."""
    encoded = io.BytesIO()
    Image.new("RGB", (24, 24), (level, level, level)).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A folder of 23 pictures, for one more."""
    folder = tmp_path / "some"
    folder.mkdir()
    for i in range(23):
        (folder / f"{i}.jpg").write_bytes(picture(24, 24, seed=i))
        (folder / f"{i}.txt").write_text(f"thing {i}")
    return folder


def add(folder, name, level):
    (folder / f"{name}.png").write_bytes(flat(level))
    (folder / f"{name}.txt").write_text(name)


def test_a_spike_names_its_records_however_the_run_was_stopped(
    toy, experiment, folder, tmp_path, capfd
):
    add(folder, "white", 255)
    # Three epochs of twelve batches.
    some = changed(experiment, data__images=str(folder), train__steps=36, train__save_every=50)
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    train(some, straight, progress=False)
    high = [row for row in read_metrics(straight) if row["loss"] > 1e5]
    assert len(high) == 3  # the loss of a white row is a hundred times that
    spikes = read_metrics(straight, SPIKES)
    assert [s["step"] for s in spikes] == [r["step"] for r in high if r["step"] > FEWEST]
    assert spikes and all("white.png" in spike["records"] for spike in spikes)
    assert all(spike["deviations"] >= 8 and spike["median"] < 1e4 for spike in spikes)
    last = spikes[-1]
    assert f"--replay {last['step']} shows more" in capfd.readouterr().err
    # What is found does not depend on a stop right before it.
    for steps in (last["step"] - 1, 36):
        train(changed(some, train__steps=steps), parts, progress=False)
    assert (parts / SPIKES).read_bytes() == (straight / SPIKES).read_bytes()
    assert_same_run(parts, straight, some)


@pytest.mark.slow
def test_updates_that_are_not_finite_are_skipped_by_all_processes_alike(
    experiment, folder, tmp_path
):
    add(folder, "black", 0)
    some = changed(
        experiment,
        data__images=str(folder),
        data__image_batch=8,
        train__steps=12,
        mesh={"data": None, "fsdp": 2},
    )
    runs = {}
    for count, devices in ((1, 4), (2, 2), (4, 1)):
        runs[count] = tmp_path / f"{count}"
        config = write_config(some, tmp_path / f"{count}.py")
        arguments = ["train", config, "--out", runs[count], "--quiet"]
        for process in finish(launch(count, arguments, devices=devices, TOY="1")):
            assert process.status == 0, process.err
    skipped = {count: read_metrics(run, SKIPPED) for count, run in runs.items()}
    assert len(skipped[1]) == 4  # one batch of three has it in each of four epochs
    for row in skipped[1]:
        assert len(row["records"]) == 8 and "black.png" in row["records"]
    for count in (2, 4):
        assert skipped[count] == skipped[1]
        assert_same_training(runs[count], runs[1])


def test_slow_storage_is_seen_in_the_metrics_and_changes_nothing_else(
    experiment, tmp_path, monkeypatch
):
    """A step of a twentieth of a second, and half a second to read a record."""

    def build_step(*args):
        step = toy_build_step(*args)

        def slowly(*args):
            time.sleep(0.05)
            return step(*args)

        return slowly

    monkeypatch.setattr(setup, "build_step", build_step)
    some = changed(experiment, train__steps=16, train__save_every=50)
    train(some, tmp_path / "fast", progress=False)
    read = FolderSource.__getitem__

    def read_slowly(self, index):
        time.sleep(0.5)
        return read(self, index)

    monkeypatch.setattr(FolderSource, "__getitem__", read_slowly)
    train(some, tmp_path / "slow", progress=False)
    waits = {}
    for name in ("fast", "slow"):  # the first batches were read while the step was compiled
        last = read_metrics(tmp_path / name)[-8:]
        waiting = sum(row["speed/data_wait"] * row["seconds"] for row in last)
        waits[name] = waiting / sum(row["seconds"] for row in last)
    assert waits["slow"] > 0.5 > waits["fast"], waits
    assert_same_run(tmp_path / "slow", tmp_path / "fast", some)
