"""A step done again is the step that was done, and its rows explain it."""

import hashlib
import json

import jax
import numpy as np
import optax
import pytest

from stylecrafter_jax.cli import main
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.train.loop import train
from stylecrafter_jax.train.metrics_log import read_metrics
from stylecrafter_jax.train.replay import replay
from tests.several import write_config
from tests.train.conftest import changed


def digests(folder):
    """Every file of a run but what a replay writes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "replay" not in path.parts
    }


@pytest.fixture
def finished(toy, experiment, tmp_path):
    """Five steps with checkpoints of steps 2, 4 and 5."""
    five = changed(experiment, train__steps=5)
    run = tmp_path / "run"
    train(five, run, progress=False)
    return five, run


def check(found, row):
    assert (found.step, found.loss, found.logged) == (row["step"], row["loss"], row["loss"])
    assert found.grad_norm == row["grad_norm"]
    losses = [each.loss for each in found.rows]
    np.testing.assert_allclose(np.mean(losses), row["loss"], rtol=1e-5)
    assert losses == sorted(losses, reverse=True)
    assert {each.record for each in found.rows} == {f"{each.index}.jpg" for each in found.rows}
    norms = list(found.gradients.values())
    assert norms == sorted(norms, reverse=True)
    assert optax.tree.norm(norms) <= 1.00001 * row["grad_norm"]


def test_a_step_is_done_again_bit_for_bit_and_the_run_stays_as_it_was(finished):
    experiment, run = finished
    before = digests(run)
    rows = read_metrics(run)
    for row, start in ((rows[1], 0), (rows[4], 4)):
        found = replay(experiment, run, row["step"])
        assert found.start == start and len(found.rows) == 2
        check(found, row)
    assert digests(run) == before
    written = json.loads((run / "replay" / "step_000005.json").read_text())
    assert written["rows"][0] == found.rows[0]._asdict() and written["loss"] == found.loss
    assert (run / "replay" / "step_000005.png").is_file()


def test_a_step_is_shown_by_the_command_line(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("stylecrafter_jax.programs.keep_on_disk", lambda: None)
    experiment, run = finished
    config = str(write_config(experiment, tmp_path / "config.py"))
    assert main(["train", config, "--out", str(run), "--replay", "3"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert f"step 3, from step 2: loss {read_metrics(run)[2]['loss']:.9g}, logged as" in first
    assert sum(".jpg" in line for line in rest) == 2
    for step, wanted in ((0, "a step from 1 to 5"), (6, "a step from 1 to 5")):
        assert main(["train", config, "--out", str(run), "--replay", str(step)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and wanted in error and f"got {step}" in error
    absent = str(tmp_path / "absent")
    assert main(["train", config, "--out", absent, "--replay", "1"]) == 1
    assert f"{absent} is no run" in capsys.readouterr().err


def test_another_config_or_other_data_are_refused(finished):
    experiment, run = finished
    with pytest.raises(ConfigError, match=r"train.seed was 0, is now 1"):
        replay(changed(experiment, train__seed=1), run, 2)
    noted = {"step": 2, "loss": 1.0, "source": "pictures", "records": ["other.jpg", "0.jpg"]}
    (run / "spikes.jsonl").write_text(json.dumps(noted) + "\n")
    with pytest.raises(ConfigError, match="are not those it trained on: step 2 had"):
        replay(experiment, run, 2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2", "autoencoder"])
def test_rows_of_the_model_itself_explain_its_loss(experiment, clips, tmp_path, stage):
    settings = {"stage": stage, "train__steps": 2, "train__save_every": 1}
    if stage == "stage2":
        settings |= {"data__videos": str(clips), "data__video_batch": 2, "data__image_share": 0.5}
    some, run = changed(experiment, **settings), tmp_path / "run"
    train(some, run, progress=False)
    for row in read_metrics(run):
        found = replay(some, run, row["step"])
        assert (found.loss, found.grad_norm) == (row["loss"], row["grad_norm"])
        np.testing.assert_allclose(np.mean([r.loss for r in found.rows]), row["loss"], rtol=1e-5)
        assert all(r.timesteps is not None for r in found.rows) == (stage != "autoencoder")
    jax.clear_caches()
