"""A run that goes on elsewhere sees the same data and has the same losses."""

import pytest

from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.train.loop import train
from stylecrafter_jax.train.means import LOSS_T
from stylecrafter_jax.train.metrics_log import read_metrics
from stylecrafter_jax.train.runs import claim
from tests.train.conftest import assert_same_training, changed


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "autoencoder"])
def test_a_batch_in_other_parts_has_the_same_losses(experiment, tmp_path, stage):
    """Each row draws its own timestep and noise, whichever rows it is computed with."""
    four = changed(experiment, stage=stage, data__image_batch=4, train__steps=4)
    # Constants before a norm have no gradient but rounding, of which Adam would make whole steps.
    four = changed(four, optimizer__eps=1e-3)
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    train(four, whole, progress=False)
    train(changed(four, train__steps=2), moved, progress=False)
    train(changed(four, train__accumulate=2), moved, progress=False)
    assert_same_training(whole, moved)
    drawn = [
        [{n: v for n, v in row.items() if n.startswith(LOSS_T)} for row in read_metrics(run)]
        for run in (whole, moved)
    ]
    for one, other in zip(*drawn, strict=True):  # the same quarters of the schedule were drawn
        assert one == pytest.approx(other, rel=1e-4)


def test_what_would_change_the_training_is_refused_by_name_and_nothing_else(experiment, tmp_path):
    run = tmp_path / "run"
    claim(run, experiment, "hash")
    other = {"data__threads": 1, "data__workers": 2, "train__save_every": 7, "train__keep_last": 9}
    other |= {"train__on_save_error": "continue", "train__remat": "full", "train__accumulate": 2}
    claim(run, changed(experiment, **other, train__spike_deviations=None, mesh__fsdp=2), "hash")
    refused = {"data__image_batch": 4, "train__seed": 1, "optimizer__b1": 0.5, "data__flip": 0.5}
    with pytest.raises(ConfigError) as error:
        claim(run, changed(experiment, **refused, **other), "hash")
    for name, was, now in (
        ("data.image_batch", 2, 4),
        ("train.seed", 0, 1),
        ("optimizer.b1", 0.9, 0.5),
        ("data.flip", 0.0, 0.5),
    ):
        assert f"{name} was {was}, is now {now}" in str(error.value)
    assert str(error.value).count(" was ") == 4


def test_parts_of_a_contrast_are_another_loss(experiment, tmp_path):
    clip = changed(experiment, stage="clip")
    claim(tmp_path / "run", clip, "hash")
    with pytest.raises(ConfigError, match="train.accumulate was 1, is now 2"):
        claim(tmp_path / "run", changed(clip, train__accumulate=2), "hash")
