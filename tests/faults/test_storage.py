"""Checkpoints that cannot be written, and clocks that jump, leave the run what it would have been.

A full disk is a limit on the size of files, which fails the same writes in the same place.
"""

import logging
import os
import time

import numpy as np
import pytest

from stylecrafter_jax.checkpoints.store import Store
from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from stylecrafter_jax.train.loop import train
from stylecrafter_jax.train.metrics_log import MetricsLog, read_metrics
from tests.limits import largest_file, obey_modes
from tests.several import finish, launch, wait, write_config
from tests.train.conftest import assert_same_run, changed, history, saved_steps, torn

# Metrics fit; a checkpoint of the toy does not.
FULL = 20_000


@pytest.fixture
def full_at(monkeypatch):
    """Steps whose next checkpoint finds no room on the disk."""
    for name in ("absl", "asyncio"):  # as the command line does: their log is a file as well
        monkeypatch.setattr(logging.getLogger(name), "level", logging.CRITICAL)
    save, due = Store.save, set()

    def save_where_there_is_room(self, step, *args):
        if step not in due:
            return save(self, step, *args)
        due.remove(step)
        with largest_file(FULL):
            save(self, step, *args)
            while self.writing():
                time.sleep(0.01)

    monkeypatch.setattr(Store, "save", save_where_there_is_room)
    return due


@pytest.mark.parametrize("way", ["stop", "continue"])
def test_a_full_disk_stops_the_run_or_not_as_configured(
    toy, experiment, tmp_path, full_at, way, capsys
):
    some = changed(experiment, train__steps=7, train__on_save_error=way, train__keep_last=9)
    run, straight = tmp_path / "run", tmp_path / "straight"
    train(some, straight, progress=False)
    full_at.add(4)
    if way == "stop":
        with pytest.raises(CheckpointError, match="File too large; the earlier ones are intact"):
            train(some, run, progress=False)
        assert saved_steps(run) == [2]
        assert [event for event, _ in history(run)] == ["started", "save_failed"]
    assert train(some, run, progress=False) == (7, True)
    shown = [x for x in capsys.readouterr().err.splitlines() if "cannot write a checkpoint" in x]
    assert len(shown) == (way == "continue") and all(x.endswith("; going on") for x in shown)
    found = [event for event, _ in history(run)]
    assert found.count("not_saved") == (way == "continue")
    assert found.count("save_failed") == (way == "stop")
    assert saved_steps(run) == ([2, 4, 6, 7] if way == "stop" else [2, 6, 7]) and torn(run) == []
    assert_same_run(run, straight, some)


def test_the_last_checkpoint_must_be_written_however_it_is_configured(
    toy, experiment, tmp_path, full_at
):
    some, run = changed(experiment, train__on_save_error="continue"), tmp_path / "run"
    full_at.add(3)
    with pytest.raises(CheckpointError, match="File too large; the earlier ones are intact"):
        train(some, run, progress=False)
    assert saved_steps(run) == [2]
    assert train(some, run, progress=False) == (3, True)
    assert saved_steps(run) == [2, 3] and torn(run) == []


def test_metrics_that_have_no_room_wait_for_it(tmp_path):
    log = MetricsLog(tmp_path, patient=True)
    log.write(1, {"loss": 0.5})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with largest_file(size + 7):  # the next line is cut in its middle
        for step in (2, 3):
            log.write(step, {"loss": 0.5 / step})
        assert (tmp_path / "metrics.jsonl").stat().st_size == size
    log.write(4, {"loss": 0.125})
    log.close()
    assert read_metrics(tmp_path) == [{"step": n, "loss": 0.5 / n} for n in (1, 2, 3, 4)]
    other = MetricsLog(tmp_path, 4, patient=True)
    with largest_file(10):
        other.write(5, {"loss": 0.1})
        with pytest.raises(OSError, match="metrics.jsonl"):
            other.close()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stop", "continue"])
def test_a_folder_that_becomes_read_only(experiment, tmp_path, way):
    some = changed(experiment, train__steps=400, train__save_every=3, train__on_save_error=way)
    config, run, straight = tmp_path / "config.py", tmp_path / "run", tmp_path / "straight"
    write_config(some, config)
    (ended,) = finish(launch(1, ["train", config, "--out", straight], TOY="1"))
    assert ended.status == 0, ended.err
    folder, arguments = run / "checkpoints", ["train", config, "--out", run, "--quiet"]
    processes = launch(1, arguments, before=obey_modes, TOY="1")
    wait(lambda: len(read_metrics(run)) >= 10)
    folder.chmod(0o555)
    event = "save_failed" if way == "stop" else "not_saved"
    wait(lambda: event in dict(history(run)) or processes[0].poll() is not None)
    folder.chmod(0o755)
    (ended,) = finish(processes)
    line, *more = ended.err.strip().splitlines()
    assert f"cannot write a checkpoint to {folder}: Permission denied; the earlier ones" in line
    assert event in dict(history(run))
    if way == "stop":
        assert ended.status == 1 and not more
        assert 0 < saved_steps(run)[-1] < 400
        (ended,) = finish(launch(1, arguments, TOY="1"))
    assert ended.status == 0, ended.err
    assert saved_steps(run)[-1] == 400
    assert_same_run(run, straight, some)


def test_clocks_that_jump_change_nothing(toy, experiment, tmp_path, monkeypatch):
    """Each look at the clock is up to a year before or after the last."""
    some = changed(experiment, train__steps=6, train__keep_last=2, train__keep_best=0)
    straight, jumped = tmp_path / "straight", tmp_path / "jumped"
    train(some, straight, progress=False)
    rng, year = np.random.default_rng(0), 365 * 24 * 3600
    begun = time.time()

    def jumping():
        return begun + float(rng.uniform(-year, year))

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * jumping()))
    assert train(changed(some, train__steps=3), jumped, progress=False) == (3, True)
    # As if the newest had been written first: what is newest is a matter of steps.
    for age, path in enumerate(sorted((jumped / "checkpoints").iterdir())):
        os.utime(path, (begun - 1000 * age, begun - 1000 * age))
    assert train(some, jumped, progress=False) == (6, True)
    assert_same_run(straight, jumped, some)
    assert saved_steps(straight) == saved_steps(jumped) == [4, 6]
