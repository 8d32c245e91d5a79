"""Samples of whole runs: what they show, that they change nothing, what is refused beforehand."""

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.checkpoints.bundle import BundleWriter, load_bundle, part_of
from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.diffusion.guidance import Guidance
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.media import video
from stylecrafter_jax.media.video import read_video
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.options import Options
from stylecrafter_jax.programs import Programs
from stylecrafter_jax.request import Request
from stylecrafter_jax.train import runs, samples
from stylecrafter_jax.train.experiment import override
from stylecrafter_jax.train.loop import train
from stylecrafter_jax.train.metrics_log import MetricsLog, read_metrics
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.start import load_start
from tests.train.conftest import changed
from tests.train.test_loop import assert_same_run

PROMPTS = ["a cat", "a dog on the moon"]


@pytest.fixture
def sampled(experiment, style_files, small_model, monkeypatch):
    """Settings -> the experiment, with two prompts in two styles after each step.

    What one test compiles for its samples the next one uses.
    """
    monkeypatch.setattr(samples, "Programs", lambda: small_model.programs)

    def sampled(**settings):
        given = {
            "samples__every": 1,
            "samples__prompts": PROMPTS,
            "samples__styles": [str(path) for path in style_files[:2]],
            "samples__steps": 2,
        }
        return changed(experiment, **given | settings)

    return sampled


def start_of(experiment):
    stage = STAGES[experiment.stage]
    return load_start(Path(experiment.bundle), stage, frozen_dtype=np.float32, seed=0)


def sample(experiment, run):
    """The grid of an experiment's first weights, as if they were those of step 500."""
    start = start_of(experiment)
    sampler = samples.make_sampler(experiment, start, run)
    assert sampler is not None
    return sampler(500, {**start.frozen, **start.trainable})


def pixels(path):
    return np.asarray(Image.open(path))


def test_samples_change_nothing_of_what_is_trained(toy, sampled, tmp_path):
    with_samples = sampled()
    without = changed(with_samples, samples__every=0)
    train(without, tmp_path / "without", progress=False)
    train(with_samples, tmp_path / "with", progress=False)
    assert_same_run(tmp_path / "with", tmp_path / "without", without)
    assert not (tmp_path / "without" / "samples").exists()
    names = sorted(path.name for path in (tmp_path / "with" / "samples").iterdir())
    assert names == ["step_000001.png", "step_000002.png", "step_000003.png"]


def test_samples_due_at_the_step_of_a_stop_are_made_when_the_run_goes_on(
    toy, sampled, tmp_path, monkeypatch
):
    short = sampled(samples__prompts=["a"], samples__every=2, train__save_every=2)
    train(short, tmp_path / "straight", progress=False)
    write = MetricsLog.write

    def write_and_stop(self, step, metrics):
        write(self, step, metrics)
        if step == 1:  # the signal is heard after the next step
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsLog, "write", write_and_stop)
        assert train(short, tmp_path / "parts", progress=False) == (2, False)
    made = "samples/step_000002.png"
    assert not (tmp_path / "parts" / made).exists()
    assert train(short, tmp_path / "parts", progress=False).finished
    grids = [pixels(tmp_path / run / made) for run in ("straight", "parts")]
    np.testing.assert_array_equal(*grids)
    assert len(list((tmp_path / "parts/samples").iterdir())) == 1


def test_a_grid_has_a_row_for_each_prompt_and_style_with_its_reference_first(
    sampled, small_model, style_files, tmp_path
):
    grid = sample(sampled(), tmp_path)
    assert grid.shape == (4 * 16, 2 * 16, 3)
    np.testing.assert_array_equal(pixels(tmp_path / "samples" / "step_000500.png"), grid)
    cells = grid.reshape(4, 16, 2, 16, 3).swapaxes(1, 2)
    for i in (0, 1):
        np.testing.assert_array_equal(cells[i, 0], cells[i + 2, 0])
        # The styles differ by which channel is dark.
        assert cells[i, 0].mean((0, 1)).argmin() == i
    options = Options(image=True, steps=2)
    for row, (i, style) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        request = Request(PROMPTS[i], [style_files[style]], index=i)
        np.testing.assert_array_equal(cells[row, 1], small_model.generate([request], options)[0, 0])


@pytest.mark.slow
def test_weights_of_the_moment_are_sampled_by_programs_compiled_once(
    toy,
    sampled,
    tmp_path,
    monkeypatch,
):
    programs, spent = Programs(), []
    monkeypatch.setattr(samples, "Programs", lambda: programs)

    def write_image(self, step, name, image):
        spent.append((step, name, image.copy(), programs.compile_seconds))

    monkeypatch.setattr(MetricsLog, "write_image", write_image)
    fast = {"optimizer__learning_rate": 0.1, "samples__use_ema": False}
    train(sampled(**fast), tmp_path / "run", progress=False)
    assert [(step, name) for step, name, _, _ in spent] == [(i, "samples") for i in (1, 2, 3)]
    assert spent[0][3] == spent[2][3] > 0
    first, last = (image.reshape(4, 16, 2, 16, 3) for image in (spent[0][2], spent[2][2]))
    np.testing.assert_array_equal(first[:, :, 0], last[:, :, 0])
    assert np.any(first[:, :, 1] != last[:, :, 1])
    shown = pixels(tmp_path / "run" / "samples" / "step_000003.png")
    np.testing.assert_array_equal(shown, spent[2][2])


@pytest.mark.parametrize("styled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_videos_become_a_grid_of_frames_and_a_clip(sampled, clips, tmp_path, styled):
    settings = {"stage": "stage2", "data__videos": str(clips)}
    settings |= {} if styled else {"samples__styles": []}
    rows = 4 if styled else 2
    assert sample(sampled(**settings), tmp_path).shape == (rows * 16, (4 + styled) * 24, 3)
    frames, fps = read_video(tmp_path / "samples" / "step_000500.mp4")
    assert frames.shape == (4, rows * 16, (1 + styled) * 24, 3) and fps == 8


def test_a_stage_without_style_is_sampled_without_adapter(sampled, tmp_path):
    base = sampled(stage="base", samples__styles=[])
    assert not any(part_of(name) == "adapter" for name in start_of(base).frozen)
    assert sample(base, tmp_path).shape == (32, 16, 3)


def test_frames_and_size_are_those_of_the_run_unless_given(sampled, small_model, clips):
    def size(**settings):
        options = samples.sample_options(sampled(**settings), small_model.config)
        return options.image, options.frames, options.height, options.width

    videos = {"stage": "stage2", "data__videos": str(clips)}
    assert size() == (True, 1, 16, 16)
    assert size(samples__frames=2) == (False, 2, 16, 24)
    assert size(**videos, samples__height=8, samples__width=8) == (False, 4, 8, 8)
    assert size(**videos, samples__frames=1) == (True, 1, 16, 16)


def test_parts_that_training_does_not_hold_are_loaded(sampled, tmp_path):
    start = start_of(sampled())
    held = {k: v for k, v in start.frozen.items() if part_of(k) not in ("vae", "text_encoder")}
    sampler = samples.make_sampler(sampled(), start._replace(frozen=held), tmp_path)
    assert sampler is not None
    model = sampler.model({**held, **start.trainable})
    whole = StyleCrafter(start.config, {**start.frozen, **start.trainable}, start.tokenizer)
    whole.programs = model.programs
    made = [m.generate(sampler.requests[:1], sampler.options) for m in (model, whole)]
    np.testing.assert_array_equal(*made)
    names = parameter_shapes(start.config)
    assert samples.missing(Path(sampled().bundle), names, ["unet", "vae"]) == {}


def test_a_bundle_without_a_part_that_only_samples_need_is_refused(sampled, tmp_path):
    start, poor = start_of(sampled()), tmp_path / "poor"
    config, params = load_bundle(sampled().bundle, expected=parameter_shapes)
    with BundleWriter(poor, config) as writer:
        for name, value in params.items():
            if part_of(name) != "vae":
                writer.add(name, value)
    held = {name: value for name, value in start.frozen.items() if part_of(name) != "vae"}
    with pytest.raises(CheckpointError, match="has no vae"):
        samples.make_sampler(sampled(bundle=str(poor)), start._replace(frozen=held), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples__styles": ["nowhere.png"]}, "samples: cannot read nowhere.png: No such file"),
        ({"samples__height": 9}, "samples: height must be a positive multiple of 2, got 9"),
        ({"samples__frames": 99}, "samples: frames must be between 1 and 4, the model's temporal"),
        ({"samples__steps": 9999}, "samples: steps must be between 1 and 1000, got 9999"),
    ],
)
def test_samples_that_cannot_be_made_leave_no_run(sampled, tmp_path, settings, message):
    with pytest.raises(ConfigError) as error:
        train(sampled(**settings), tmp_path / "run", progress=False)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("samples.every=-1", "samples.every must be at least 0, got -1"),
        ("samples.every=5", "samples.every is set but samples.prompts is empty"),
        ("samples.sampler=magic", "samples.sampler must be one of "),
        ("samples.seed=-1", "samples.seed must be from 0 to 4.29497e+09, got -1"),
        ("samples.prompts=a cat", "samples.prompts: wanted a list, got 'a cat'"),
        ("samples.stylez=[]", "unknown setting samples.stylez; did you mean samples.styles?"),
        ('samples.guidance={"text":NaN}', "guidance: text must be finite, got nan"),
    ],
)
def test_a_wrong_setting_is_one_line(experiment, setting, message):
    with pytest.raises(ValueError) as error:
        override(experiment, [setting])
    assert str(error.value).startswith(message)


def test_settings_are_overridden_by_name(experiment):
    names = ["samples.every=5", 'samples.prompts=["a","b"]', 'samples.guidance={"text":2}']
    new = override(experiment, names).samples
    assert (new.every, new.prompts, new.guidance) == (5, ("a", "b"), Guidance(2.0))
    with pytest.raises(ConfigError, match="base trains without style; samples.styles must be"):
        override(experiment, ["stage=base", 'samples.styles=["a.png"]'])


def test_a_run_goes_on_with_other_samples(experiment, sampled, tmp_path):
    runs.claim(tmp_path / "run", experiment, "hash")
    runs.claim(tmp_path / "run", sampled(), "hash")
    found = runs.read_run(tmp_path / "run")
    assert found["experiment"]["samples"]["prompts"] == PROMPTS
    del found["experiment"]["samples"]  # as runs were before there were samples
    (tmp_path / "run" / "run.json").write_text(json.dumps(found))
    runs.claim(tmp_path / "run", sampled(), "hash")


@pytest.mark.slow
def test_a_sample_that_cannot_be_written_ends_no_run(
    toy,
    sampled,
    tmp_path,
    monkeypatch,
    capfd,
):
    def write_png(frames, path, quality):
        path.write_bytes(b"half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(video.WRITERS, ".png", write_png)
    one = sampled(train__steps=1, samples__prompts=["a"])
    assert train(one, tmp_path / "run", progress=False).finished
    err = capfd.readouterr().err
    assert "step 1: no samples: cannot write" in err and "No space left on device" in err
    assert [*(tmp_path / "run" / "samples").iterdir()] == []
    assert len(read_metrics(tmp_path / "run")) == 1
