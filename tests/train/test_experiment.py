"""One config for a run: found in a file, overridden by name, checked, compared."""

from pathlib import Path

import pytest

from stylecrafter_jax import params as weights
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.config_json import from_dict, to_dict
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.train.experiment import Experiment, differences, load_experiment, override
from stylecrafter_jax.train.stages import STAGES
from tests.train.conftest import changed

CONFIGS = Path(__file__).parents[2] / "configs"


def test_experiment_survives_its_dict(experiment):
    assert from_dict(Experiment, to_dict(experiment)) == experiment


def test_override_reads_json_and_text(experiment):
    names = ["train.steps=10", "data.drop.text=0.1", "data.images=some folder", "data.stride=[1,4]"]
    new = override(experiment, names)
    assert (new.train.steps, new.data.drop.text) == (10, 0.1)
    assert (new.data.images, new.data.stride) == ("some folder", (1, 4))
    assert new.optimizer == experiment.optimizer


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.stepz=1", "unknown setting train.stepz; did you mean train.steps?"),
        ("steps=1", "unknown setting steps; did you mean train.steps?"),
        ("train.steps=many", "train.steps: wanted int, got 'many'"),
        ("train.steps=1.5", "train.steps: wanted int, got 1.5"),
        ("train.steps=0", "train.steps must be at least 1, got 0"),
        ("train.steps", "wanted NAME=VALUE, got 'train.steps'"),
        ("optimizer.learning_rate=NaN", "optimizer.learning_rate must be at least 1e-30, got nan"),
        (
            "stage=stage3",
            "stage: wanted one of autoencoder, clip, base, stage1, stage2, joint, got 'stage3'",
        ),
        ("data.videos=x", "stage1 trains on pictures alone; data.videos must be null"),
        ("data.images=null", "there is nothing to train on: set data.images or data.videos"),
        ("train.accumulate=4", "data.image_batch 2 is no multiple of train.accumulate 4"),
        ("data.frames=1", "data.frames must be at least 2, got 1"),
    ],
)
def test_a_wrong_setting_is_one_line(experiment, setting, message):
    with pytest.raises(ConfigError) as error:
        override(experiment, [setting])
    assert str(error.value) == message


def test_differences_name_the_fields(experiment):
    new = changed(experiment, train__seed=1, data__image_batch=4)
    lines = differences(to_dict(experiment), to_dict(new))
    assert lines == ["data.image_batch was 2, is now 4", "train.seed was 0, is now 1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1", "there is no 'get_config'"),
        ("def get_config(): return 3", "gave a int"),
        ("import nothing_like_this", "ModuleNotFoundError"),
        ("def get_config(:", "SyntaxError"),
    ],
)
def test_a_wrong_config_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "config.py"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_experiment(path)
    with pytest.raises(ConfigError, match="there is no config file"):
        load_experiment(tmp_path / "other.py")


def test_stages_train_the_published_sets(tiny_config):
    names = parameter_shapes(tiny_config)
    sets = {stage: set(weights.select(names, STAGES[stage].trainable)) for stage in STAGES}
    adapter = {name for name in names if name.startswith("adapter/") or "_style/" in name}
    temporal = {
        name
        for name in names
        if name.startswith(("unet/init_attn.0", "unet/middle_block.2"))
        or name.split("/")[1].endswith(".2")
        and "put_blocks" in name
        and "transformer" in name
    }
    assert sets["stage1"] == adapter
    assert temporal <= sets["stage2"]
    assert not any("attn2/to_k_style" in name or "time_embed" in name for name in sets["stage2"])
    assert sets["joint"] == sets["stage1"] | sets["stage2"]
    assert sets["base"] == {n for n in names if n.startswith("unet/")} - adapter


RUNS = sorted(set(CONFIGS.glob("*.py")) - {CONFIGS / "demo_model.py"})


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_say_how_to_run_them(path):
    experiment = load_experiment(path)
    assert f"stylecrafter train configs/{path.name} --out" in path.read_text()
    assert from_dict(Experiment, to_dict(experiment)) == experiment
