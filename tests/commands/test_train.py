"""The `train` and `merge` subcommands, without training where that is not the claim."""

import argparse
import json
import signal
from pathlib import Path

import pytest

from stylecrafter_jax.checkpoints.bundle import is_bundle
from stylecrafter_jax.commands import statuses
from stylecrafter_jax.commands import train as command
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.config_json import to_dict
from stylecrafter_jax.train import loop
from stylecrafter_jax.train.loop import Outcome
from tests.train.conftest import experiment, pictures  # noqa: F401 - fixtures

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def run():
    """Arguments -> status of the command."""
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())

    def run(*arguments):
        args = parser.parse_args([str(argument) for argument in arguments])
        return args.run(args)

    return run


@pytest.fixture
def config(experiment, tmp_path):  # noqa: F811 - a fixture
    """A config file of the small experiment."""
    path = tmp_path / "config.py"
    path.write_text(
        "from stylecrafter_jax.config_json import from_dict\n"
        "from stylecrafter_jax.train.experiment import Experiment\n"
        f"def get_config():\n    return from_dict(Experiment, {to_dict(experiment)!r})\n"
    )
    return path


def test_settings_reach_the_run(run, config, tmp_path, monkeypatch, capsys):
    seen = []

    def record(experiment, folder, **wishes):  # noqa: F811
        seen.append((experiment.train.steps, experiment.train.seed, folder, wishes))
        return Outcome(5, True)

    monkeypatch.setattr(loop, "train", record)
    settings = ("--set", "train.steps=5", "--set", "train.seed=3")
    wishes = ("--quiet", "--profile", "2:4")
    assert run("train", config, "--out", tmp_path / "run", *settings, *wishes) == 0
    wanted = {"progress": False, "profile": (2, 4), "wandb": None}
    assert seen == [(5, 3, tmp_path / "run", wanted)]
    assert capsys.readouterr().out == f"{tmp_path / 'run'}\n"


def test_a_stop_has_its_own_status(run, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: Outcome(2, False))
    assert run("train", config, "--out", tmp_path / "run") == statuses.STOPPED == 3
    assert "stopped after step 2 of 3" in capsys.readouterr().err


def test_resume_wants_a_run(run, config, tmp_path):
    with pytest.raises(ConfigError, match="is no run: run.json is missing"):
        run("train", config, "--out", tmp_path / "run", "--resume")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_train_and_merge(run, config, tmp_path):
    folder, out = tmp_path / "run", tmp_path / "out"
    assert run("train", config, "--out", folder, "--set", "train.steps=1", "--quiet") == 0
    assert run("merge", folder, out) == 0
    assert is_bundle(out)


def test_the_demo_model_trains_right_after_the_install_and_longer_later(run, tmp_path):
    config, folder = CONFIGS / "demo_stage1.py", tmp_path / "run"
    small = ("--quiet", "--set", "data.image_batch=2", "train.log_every=1", "mesh.data=1")
    for steps in (1, 2):
        assert run("train", config, "--out", folder, *small, f"train.steps={steps}") == 0
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
