import importlib.util
import json
import sys
import types

import numpy as np
import pytest

from stylecrafter_jax.cli import main
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.train.metrics_log import MetricsLog
from stylecrafter_jax.train.wandb_log import WandbLog, check_wandb


def test_without_the_package_the_command_says_how_to_install_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install 'stylecrafter_jax\\[wandb\\]'"):
        check_wandb()
    config = "configs/demo_stage1.py"
    assert main(["train", config, "--out", str(tmp_path / "run"), "--wandb", "styles"]) == 1
    assert capsys.readouterr().err == (
        "stylecrafter: error: --wandb needs the package wandb: pip install "
        "'stylecrafter_jax[wandb]'\n"
    )
    assert not (tmp_path / "run").exists()


def test_an_id_that_is_damaged_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    (tmp_path / "wandb.json").write_text("[")
    with pytest.raises(ConfigError, match="wandb.json is damaged: it has no id"):
        WandbLog("styles", tmp_path, {})


@pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="the extra `wandb` is not installed"
)
def test_metrics_and_images_arrive_and_a_resumed_run_is_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for step in (1, 2):
        log = MetricsLog(tmp_path, step, WandbLog("styles", tmp_path, {"train": {"steps": 2}}))
        log.write(step, {"loss": 0.5, "loss_t/0-249": 0.25})
        log.write_image(step, "samples", np.full((4, 6, 3), 7, np.uint8))
        log.close()
        ids.append(json.loads((tmp_path / "wandb.json").read_text())["id"])
    assert ids[0] == ids[1]
    files = list((tmp_path / "wandb").rglob("run-*.wandb"))
    assert files and all(ids[0] in file.name for file in files)
    content = b"".join(file.read_bytes() for file in files)
    assert b"loss_t/0-249" in content and b"steps" in content
    assert list((tmp_path / "wandb").rglob("samples*.png"))
