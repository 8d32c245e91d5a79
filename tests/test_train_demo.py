"""launch/train_demo.sh: the demo model's recipe, with one step for each stage."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "launch" / "train_demo.sh"
STAGES = ("autoencoder", "clip", "pictures", "motion", "base", "stage1", "stage2")
# The last stage's bundle is the result.
BUNDLES = {"new", *STAGES[:-1], "demo"}
SHORT = (
    "train.steps=1 train.save_every=1 train.log_every=1 samples.every=0 data.image_batch=2 "
    "optimizer.warmup_steps=0"
)


def launched(*words, settings="", **options):
    command = Path(sys.executable).with_name("stylecrafter")
    if not command.exists():
        pytest.skip("the package is not installed beside this Python")
    env = {**os.environ, "STYLECRAFTER": str(command), "SETTINGS": settings}
    env["JAX_PLATFORMS"] = "cpu"
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, words)], env=env, text=True, capture_output=True, **options
    )


def test_an_unknown_stage_is_refused_before_anything_is_made(tmp_path):
    ended = launched(tmp_path / "work", "stage3")
    assert ended.returncode == 2
    assert ended.stderr == "train_demo.sh: there is no stage stage3\n"
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_every_stage_follows_from_the_one_before_and_is_not_done_twice(tmp_path):
    work = tmp_path / "work"
    for stage in STAGES:  # as someone would who stops after each
        ended = launched(work, stage, settings=SHORT)
        assert ended.returncode == 0, ended.stderr[-2000:]
    assert {path.name for path in (work / "bundles").iterdir()} == BUNDLES
    times = {path: path.stat().st_mtime_ns for path in (work / "bundles").iterdir()}
    ended = launched(work, settings=SHORT)
    assert ended.returncode == 0 and ended.stdout == ""
    assert times == {path: path.stat().st_mtime_ns for path in (work / "bundles").iterdir()}
    style, out = work / "style.png", tmp_path / "cat.mp4"
    command = Path(sys.executable).with_name("stylecrafter")
    Image.new("RGB", (80, 64), "orange").save(style)
    words = ["generate", "a cat", "--style", style, "--bundle", work / "bundles" / "demo"]
    made = subprocess.run(
        [command, *words, "--steps", "2", "--out", out], text=True, capture_output=True
    )
    assert made.returncode == 0, made.stderr
    assert out.stat().st_size > 0
