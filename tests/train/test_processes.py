"""Runs of several real processes train what one process trains, and end together."""

import signal

import numpy as np
import pytest

from stylecrafter_jax.config_json import to_dict
from stylecrafter_jax.train.loop import train
from stylecrafter_jax.train.metrics_log import read_metrics
from tests.several import finish, launch, wait, write_config
from tests.train.conftest import (
    CLOSE,
    EPS,
    LOSS,
    assert_same_run,
    assert_same_training,
    changed,
    losses,
    saved_steps,
)


@pytest.fixture
def shared(experiment):
    """The experiment on all devices, with batches of eight."""
    return changed(experiment, data__image_batch=8, mesh={"data": None, "fsdp": 2})


def run(experiment, folder, count, *, devices=2, **env):
    """Trains in so many processes; returns how they ended."""
    config = write_config(experiment, folder.with_suffix(".py"))
    return finish(launch(count, ["train", config, "--out", folder], devices=devices, **env))


def until(folder, step):
    """Waits until a run has logged a step."""
    wait(lambda: any(row["step"] >= step for row in read_metrics(folder)))


def test_two_processes_train_as_one(tmp_path, shared, toy):
    together, alone = tmp_path / "together", tmp_path / "alone"
    ended = run(shared, together, 2, TOY="1")
    assert [process.status for process in ended] == [0, 0], ended[0].err + ended[1].err
    assert str(together) in ended[0].out and str(together) not in ended[1].out
    assert not [line for line in ended[1].err.splitlines() if "step" in line], "one console is calm"
    train(changed(shared, mesh={"data": 1, "fsdp": 1}, train__steps=3), alone, progress=False)
    assert_same_training(together, alone)


@pytest.mark.slow
def test_one_process_goes_on_where_two_were(tmp_path, shared, toy):
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert [process.status for process in run(shared, together, 2, TOY="1")] == [0, 0]
    more = changed(shared, train__steps=5, mesh={"data": 4, "fsdp": 2})
    train(more, together, progress=False)
    train(changed(more, mesh={"data": 1, "fsdp": 1}), alone, progress=False)
    assert_same_training(together, alone)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_model_itself_trains_in_two_and_in_four_processes(tmp_path, shared, clips, stage):
    both = {"data__videos": str(clips), "data__video_batch": 4, "data__image_batch": 4}
    kinds = both if stage == "stage2" else {}
    wanted = changed(shared, stage=stage, optimizer__eps=EPS, **kinds)
    single = changed(wanted, mesh={"data": 1, "fsdp": 1})
    assert run(single, tmp_path / "alone", 1)[0].status == 0
    inner = "frames" if stage == "stage2" else "tensor"
    other = {"data": 1, "fsdp": 2, inner: 2}
    # Two processes begin, four go on over another mesh, and one ends.
    for count, steps, devices, mesh in ((2, 1, 2, {}), (4, 2, 1, other), (1, 3, 2, {})):
        part = changed(wanted, train__steps=steps, mesh=mesh or to_dict(wanted.mesh))
        for process in run(part, tmp_path / "moved", count, devices=devices):
            assert process.status == 0, process.err
    assert_same_training(tmp_path / "alone", tmp_path / "moved", CLOSE)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path, shared):
    folder, straight = tmp_path / "run", tmp_path / "straight"
    long = changed(shared, train__steps=24, train__save_every=1000)
    config = write_config(long, tmp_path / "config.py")
    processes = launch(2, ["train", config, "--out", folder, "--quiet"], TOY="1")
    until(folder, 5)
    processes[1].send_signal(signal.SIGTERM)
    ended = finish(processes)
    assert [process.status for process in ended] == [3, 3]
    (stopped,) = saved_steps(folder)
    assert f"stopped after step {stopped} of 24" in ended[0].err
    assert [process.status for process in run(long, folder, 2, TOY="1")] == [0, 0]
    assert [process.status for process in run(long, straight, 2, TOY="1")] == [0, 0]
    assert_same_run(folder, straight, long)


@pytest.mark.slow
def test_data_that_fail_one_process_end_all_and_lose_nothing(tmp_path, shared, pictures):
    folder = tmp_path / "run"
    bad = tmp_path / "pictures"
    bad.mkdir()
    for file in pictures.iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    first = changed(shared, data__images=str(bad), data__max_bad_rate=0.0, data__threads=1)
    assert [p.status for p in run(changed(first, train__steps=2), folder, 2, TOY="1")] == [0, 0]
    picture = bad / "3.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    ended = run(changed(first, train__steps=8), folder, 2, TOY="1")
    assert [process.status for process in ended] == [1, 1]
    lines = [process.err.splitlines()[-1] for process in ended]
    assert all("cannot be used, more than the share of 0" in line for line in lines)
    assert sum("process" in line for line in lines) <= 1
    picture.write_bytes(whole)
    assert [p.status for p in run(changed(first, train__steps=8), folder, 2, TOY="1")] == [0, 0]
    alone = tmp_path / "alone"
    assert run(changed(first, train__steps=8), alone, 1, devices=4, TOY="1")[0].status == 0
    np.testing.assert_allclose(losses(folder), losses(alone), rtol=LOSS)


@pytest.mark.slow
def test_what_is_wrong_on_one_host_is_one_line_on_all(tmp_path, shared):
    folder = tmp_path / "run"
    config = write_config(shared, tmp_path / "config.py")
    absent = str(tmp_path / "absent")
    processes = launch(2, ["train", config, "--out", folder, "--set", f"data.images={absent}"])
    for process in finish(processes):
        assert process.status == 1
        assert f"{absent}" in process.err.splitlines()[-1]
    assert not folder.exists()
    arguments, other = ["train", config, "--out", folder], ["--set", "train.save_every=7"]
    for index, process in enumerate(finish(launch(2, arguments, others=other))):
        assert process.status == 1, index
        assert process.err.splitlines()[-1] == (
            "stylecrafter: error: all processes must be asked for the same: process 1 has another "
            "config than process 0"
        )
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_does_not_leave_the_other_waiting(tmp_path, shared, killed):
    folder, straight = tmp_path / "run", tmp_path / "straight"
    long = changed(shared, train__steps=60, train__save_every=5)
    config = write_config(long, tmp_path / "config.py")
    arguments = ["train", config, "--out", folder, "--quiet", "--lost-after", 10]
    processes = launch(2, arguments, TOY="1")
    until(folder, 12)
    processes[killed].kill()
    ended = finish(processes, seconds=60)
    assert ended[1 - killed].status in (4, -signal.SIGABRT)
    for where in (folder, straight):
        for process in run(long, where, 2, TOY="1"):
            assert process.status == 0, process.err
    assert_same_run(folder, straight, long)
    assert len(losses(folder)) == 60
