"""Whole runs on a small model: stopped and resumed, refused, gone wrong."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from stylecrafter_jax import params as weights
from stylecrafter_jax.checkpoints.bundle import BundleWriter, load_bundle, part_of
from stylecrafter_jax.checkpoints.store import Store
from stylecrafter_jax.checkpoints.torch_files import CheckpointError, read_tensors
from stylecrafter_jax.cli import main
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.data.pipeline import Batches
from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.train import loop, runs, setup
from stylecrafter_jax.train.events import read_events
from stylecrafter_jax.train.loop import train
from stylecrafter_jax.train.means import LOSS_T, SCALE, labels
from stylecrafter_jax.train.metrics_log import MetricsLog, read_metrics
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.start import load_start
from stylecrafter_jax.train.watch import TrainingError
from tests.several import write_config
from tests.train.conftest import (
    assert_same_run,
    changed,
    history,
    rows,
    saved_steps,
    state_of,
    toy_build_step,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def real():
    """Runs of the small model itself."""


@pytest.mark.parametrize("kind", ["toy", pytest.param("real", marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted(experiment, tmp_path, kind, request):
    request.getfixturevalue(kind)
    six = changed(experiment, train__steps=6)
    assert train(six, tmp_path / "straight", progress=False) == (6, True)
    assert train(experiment, tmp_path / "parts", progress=False) == (3, True)
    assert train(six, tmp_path / "parts", progress=False) == (6, True)
    assert_same_run(tmp_path / "straight", tmp_path / "parts", six)
    written = rows(tmp_path / "straight")
    assert [row["step"] for row in written] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "grad_norm", "learning_rate", "skipped"} <= written[0].keys()
    assert history(tmp_path / "straight") == [("started", 0), ("finished", 6)]
    assert history(tmp_path / "parts")[1:] == [("finished", 3), ("resumed", 3), ("finished", 6)]
    measured = [row.keys() for row in read_metrics(tmp_path / "straight")]
    assert {"seconds", "speed/images", "speed/data_wait", "memory/host"} <= set.intersection(
        *map(set, measured)
    )
    documented = set(re.findall(r"`([^`]+)`", (ROOT / "docs/observing.md").read_text()))
    own = {"step", "light"}  # of every line, and of the toy
    names = {n for names in measured for n in names if not n.startswith((LOSS_T, SCALE))} - own
    assert names <= documented
    factors = {n for n in measured[0] if n.startswith(SCALE)}
    wanted = labels(load_bundle(experiment.bundle, expected=parameter_shapes)[0])[SCALE]
    assert factors == ({f"{SCALE}/{name}" for name in wanted} if kind == "real" else set())
    assert "speed/compile" in measured[0] and "speed/compile" not in measured[1]
    assert sum("checkpoint/blocked" in names for names in measured) == 2  # of steps 2 and 4


def test_means_between_lines_are_those_of_a_run_without_a_stop(toy, experiment, tmp_path):
    """Stopped at step 6, between lines at 4 and 8."""
    few = changed(experiment, train__steps=8, train__log_every=4, train__save_every=100)
    train(few, tmp_path / "straight", progress=False)
    for steps in (6, 8):
        train(changed(few, train__steps=steps), tmp_path / "parts", progress=False)
    one, other = rows(tmp_path / "straight"), rows(tmp_path / "parts")
    assert [row["step"] for row in other] == [4, 6, 8]
    assert one == [row for row in other if row["step"] in (4, 8)]
    # Of 8 rows drawn from 1000 timesteps by this seed, some lie in every half.
    assert all(len([n for n in row if n.startswith("loss_t/")]) >= 2 for row in one)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(toy, experiment, tmp_path, monkeypatch, number):
    write = MetricsLog.write

    def write_and_stop(self, step, metrics):
        write(self, step, metrics)
        if step == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    monkeypatch.setattr(MetricsLog, "write", write_and_stop)
    outcome = train(changed(experiment, train__steps=9), tmp_path / "run", progress=False)
    assert outcome == (3, False)
    assert signal.getsignal(number) is before
    assert int(state_of(tmp_path / "run", experiment, experiment.bundle).step) == 3
    assert history(tmp_path / "run") == [("started", 0), ("stopped", 3)]


def test_a_signal_before_the_first_step_is_heard(toy, experiment, tmp_path, monkeypatch):
    """As while weights are read: the run is there, with its first step saved."""
    prepare = loop.prepare

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return prepare(*args)

    monkeypatch.setattr(loop, "prepare", signalled)
    run = tmp_path / "run"
    assert train(changed(experiment, train__steps=9), run, progress=False) == (1, False)
    assert int(state_of(run, experiment, experiment.bundle).step) == 1


def test_whatever_ends_the_data_is_one_line_and_a_checkpoint(
    toy, experiment, tmp_path, monkeypatch
):
    """Such as a worker process that the system kills."""
    draw = Batches.__next__

    def draw_or_die(self):
        if self.step == 3:
            raise RuntimeError("Worker process was terminated\nunexpectedly")
        return draw(self)

    monkeypatch.setattr(Batches, "__next__", draw_or_die)
    run = tmp_path / "run"
    with pytest.raises(DataError, match="cannot be read: Worker process was terminated unexp"):
        train(changed(experiment, train__steps=9), run, progress=False)
    assert int(state_of(run, experiment, experiment.bundle).step) == 3
    monkeypatch.undo()


def test_a_save_that_failed_is_tried_again_before_the_data_end_the_run(
    toy, experiment, tmp_path, monkeypatch
):
    draw, save, run, tried = Batches.__next__, Store.save, tmp_path / "run", []

    def draw_or_fail(self):
        if self.step == 4:
            raise DataError("no more")
        return draw(self)

    def save_or_fail(self, step, *args):
        tried.append(step)
        if tried == [2, 4]:
            raise CheckpointError("the disk is full")
        save(self, step, *args)

    monkeypatch.setattr(Batches, "__next__", draw_or_fail)
    monkeypatch.setattr(Store, "save", save_or_fail)
    patient = changed(experiment, train__steps=9, train__on_save_error="continue")
    with pytest.raises(DataError, match="no more"):
        train(patient, run, progress=False)
    assert tried == [2, 4, 4] and saved_steps(run) == [2, 4]
    monkeypatch.undo()


def test_a_step_that_does_not_fit_is_one_line(experiment, tmp_path, monkeypatch):
    def build_step(*_):
        def step(*_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")

        return step

    monkeypatch.setattr(setup, "build_step", build_step)
    monkeypatch.setattr(loop, "step_flops", lambda *_: 1.0)
    with pytest.raises(TrainingError, match="memory is too small for a step; try a smaller data"):
        train(experiment, tmp_path / "run", progress=False)


@pytest.mark.slow
def test_pictures_and_videos_take_turns(experiment, clips, tmp_path):
    both = changed(experiment, stage="stage2", data__videos=str(clips), train__steps=4)
    assert train(both, tmp_path / "run", progress=False).finished
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path / "run"))


def test_each_kind_of_batch_has_its_own_step(experiment, clips, tmp_path, monkeypatch):
    seen = []

    def build_step(experiment, start, tx, mode):
        step = toy_build_step(experiment, start, tx, mode)

        def counted(state, frozen, batch, key):
            seen.append((mode, batch["pixels"].shape[:2]))
            return step(state, frozen, batch, key)

        return counted

    monkeypatch.setattr(setup, "build_step", build_step)
    both = changed(experiment, stage="stage2", data__videos=str(clips), train__steps=4)
    train(both, tmp_path / "run", progress=False)
    assert sorted(seen) == 2 * [("stills", (2, 1))] + 2 * [("video", (1, 2))]


@pytest.mark.slow
def test_base_trains_without_style(experiment, tmp_path):
    base = changed(experiment, stage="base", train__steps=1)
    assert train(base, tmp_path / "run", progress=False).finished
    _, params = load_bundle(experiment.bundle, expected=parameter_shapes)
    _, trained = runs.merged(tmp_path / "run", "last")
    moved = {name for name in params if not np.array_equal(params[name], trained[name])}
    assert moved and moved <= set(weights.select(params, STAGES["base"].trainable))


def test_a_changed_config_is_refused(experiment, tmp_path):
    run = tmp_path / "run"
    runs.claim(run, experiment, "hash")
    runs.claim(run, changed(experiment, train__steps=5), "hash")
    with pytest.raises(ConfigError, match=r"train.seed was 0, is now 1"):
        runs.claim(run, changed(experiment, train__seed=1, train__steps=5), "hash")
    with pytest.raises(ConfigError, match=r"train.steps was 5, is now 3"):
        runs.claim(run, experiment, "hash")
    with pytest.raises(ConfigError, match="the content of the bundle .* is another"):
        runs.claim(run, changed(experiment, train__steps=5), "other")
    cosine = changed(experiment, optimizer__schedule="cosine")
    runs.claim(tmp_path / "cosine", cosine, "hash")
    with pytest.raises(ConfigError, match="train.steps"):
        runs.claim(tmp_path / "cosine", changed(cosine, train__steps=5), "hash")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ConfigError, match="exists and is no run"):
        runs.claim(tmp_path / "other", experiment, "hash")


def test_an_adapter_from_scratch_begins_at_the_text_attention(small_bundle, tmp_path, monkeypatch):
    config, params = load_bundle(small_bundle, expected=parameter_shapes)
    base = tmp_path / "base"
    with BundleWriter(base, config) as writer:
        for name, value in params.items():
            if part_of(name) != "adapter":
                writer.add(name, value)
    start = load_start(base, STAGES["stage1"], frozen_dtype=np.float32, seed=0)
    assert set(start.trainable) == set(weights.select(params, weights.ADAPTER))
    assert all(type(value) is np.ndarray for value in start.trainable.values())
    for name, value in start.trainable.items():
        if "_style/kernel" in name:
            np.testing.assert_array_equal(value, params[name.replace("_style", "")])
        if "norm_style" in name:
            np.testing.assert_array_equal(value, float(name.endswith("scale")))
    with pytest.raises(CheckpointError, match="has no adapter, which this stage uses"):
        load_start(base, STAGES["stage2"], frozen_dtype=np.float32, seed=0)


def test_a_loss_that_stays_nan_ends_the_run_and_keeps_the_checkpoint(
    toy, experiment, tmp_path, monkeypatch, capfd
):
    run = tmp_path / "run"
    train(changed(experiment, train__steps=2), run, progress=False)
    healthy = state_of(run, experiment, experiment.bundle)
    load = setup.load_start

    def broken(*args, **kwargs):
        start = load(*args, **kwargs)
        poison = {name: value * np.nan for name, value in start.frozen.items() if "unet" in name}
        return start._replace(frozen={**start.frozen, **poison})

    monkeypatch.setattr(setup, "load_start", broken)
    worse = changed(experiment, train__steps=20, train__max_skipped=10)
    with pytest.raises(TrainingError, match="not finite in 10 steps in a row, the last is 12"):
        train(worse, run, progress=False)
    kept = state_of(run, experiment, experiment.bundle)
    jax.tree.map(np.testing.assert_array_equal, kept, healthy)
    skipped = read_metrics(run, "skipped.jsonl")
    assert [row["step"] for row in skipped] == list(range(3, 13))
    for row in skipped:
        assert row["source"] == "pictures" and len(row["index"]) == 2
        assert row["records"] == [f"{number}.jpg" for number in row["index"]]
    shown = ", ".join(skipped[0]["records"])
    assert f"step 3 skipped: loss nan, of pictures: {shown}" in capfd.readouterr().err


def test_a_mistake_in_the_data_leaves_no_run(experiment, tmp_path):
    with pytest.raises(DataError, match="there is no file or folder"):
        train(changed(experiment, data__images="nowhere"), tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match="data.height must be a multiple of 2"):
        train(changed(experiment, data__height=9), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_broken_data_ends_the_run_with_a_line_and_a_checkpoint(toy, experiment, pictures, tmp_path):
    folder, run = tmp_path / "some", tmp_path / "run"
    shutil.copytree(pictures, folder)
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("a thing")
    strict = changed(
        experiment, data__images=str(folder), data__max_bad_rate=0.0, train__seed=2, train__steps=9
    )
    with pytest.raises(DataError, match="cannot be used, more than the share of 0"):
        train(strict, run, progress=False)
    done = len(rows(run))
    assert done > 0
    assert int(state_of(run, strict, strict.bundle).step) == done
    last = read_events(run)[-1]
    assert (last["event"], last["step"]) == ("stopped", done)
    assert "cannot be used, more than the share of 0" in last["reason"]


def test_a_full_disk_for_metrics_ends_the_run_with_a_checkpoint(
    toy, experiment, tmp_path, monkeypatch
):
    run = tmp_path / "run"

    class Full(MetricsLog):
        def write(self, step, metrics):
            if step == 2:
                raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
            super().write(step, metrics)

    monkeypatch.setattr(loop, "MetricsLog", Full)
    with pytest.raises(OSError, match="No space left"):
        train(changed(experiment, train__log_every=1), run, progress=False)
    assert int(state_of(run, experiment, experiment.bundle).step) == 2


def test_merged_run_is_a_bundle(toy, experiment, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    train(changed(experiment, train__steps=2), run, progress=False)
    runs.write_bundle(run, out, which="last")
    _, params = load_bundle(experiment.bundle, expected=parameter_shapes)
    _, trained = load_bundle(out, expected=parameter_shapes, verify="hash")
    state = state_of(run, experiment, experiment.bundle)
    for name, value in params.items():
        np.testing.assert_array_equal(trained[name], state.trainable.get(name, value))
    _, average = runs.merged(run)
    name = "adapter/image_context_model/latents"
    name = name if name in state.ema else next(iter(state.ema))
    np.testing.assert_array_equal(average[name], state.ema[name])
    pytest.importorskip("torch", reason="PyTorch's files need PyTorch")
    (path,) = runs.export_run(run, tmp_path / "original", ["adapter"])
    assert [file.name for file in path.parent.iterdir()] == ["adapter_v1.pth"]
    assert main(["convert", "export", str(run), str(tmp_path / "cli"), "--what", "adapter"]) == 0
    written = read_tensors(tmp_path / "cli/adapter_v1.pth")
    expected = read_tensors(path)
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_killed_equals_uninterrupted(experiment, tmp_path):
    steps = changed(experiment, train__steps=50, train__save_every=5)
    config = write_config(steps, tmp_path / "config.py")
    code = (
        "import sys; from pathlib import Path\n"
        "from stylecrafter_jax.train.experiment import load_experiment\n"
        "from stylecrafter_jax.train.loop import train\n"
        "train(load_experiment(Path(sys.argv[1])), Path(sys.argv[2]), progress=False)\n"
    )
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def begin(run):
        return subprocess.Popen([sys.executable, "-c", code, config, run], env=env)

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert begin(straight).wait() == 0
    process = begin(killed)
    deadline = time.monotonic() + 300
    while len(read_metrics(killed)) < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 20 <= len(read_metrics(killed)) < 50
    assert begin(killed).wait() == 0
    assert_same_run(straight, killed, steps)
