"""Every command of the tutorial, in its order, on a tiny model."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.checkpoints.torch_files import read_tensors
from stylecrafter_jax.cli import build_parser, main
from stylecrafter_jax.media.video import read_video

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs/your_own_style.md").read_text()
# What makes the real commands small enough for a test; nothing else of them is changed.
SMALLER = {
    "train": ["data.height=24", "data.width=16", "data.style_short_side=20", "data.style_size=16"]
    + ["data.image_batch=2", "train.steps=2", "samples.every=2", "samples.steps=2"]
    + ["train.compute_dtype=float32", "train.frozen_dtype=float32", "train.save_every=2"]
    + ["mesh.data=1"],
    "generate": ["--steps", "2"],
}


def commands():
    blocks = re.findall(r"```sh\n(.*?)```", TUTORIAL, flags=re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("line", commands())
def test_every_command_is_understood(line):
    _, *words = shlex.split(line)
    assert build_parser().parse_args(words).command


@pytest.mark.slow
def test_the_tutorial_works(small_bundle, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="PyTorch's files need PyTorch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles/stylecrafter").symlink_to(small_bundle)
    (tmp_path / "my_pictures").mkdir()
    names = ["boat", *(f"thing_{i}" for i in range(19))]
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"my_pictures/{name}.jpg")
        (tmp_path / f"my_pictures/{name}.txt").write_text(f"a {name} on a river")
    for line in commands():
        _, *words = shlex.split(line)
        assert main([*words, *SMALLER.get(words[0], [])]) == 0, capsys.readouterr().err
    assert (tmp_path / "sheet.png").is_file()
    assert (tmp_path / "runs/mine/samples/step_000002.png").is_file()
    assert len(read_video(tmp_path / "lighthouse.mp4")[0]) == 4
    assert read_tensors(tmp_path / "exported/adapter_v1.pth")
