"""The steps that a plan is made of are those that training compiles."""

import jax
import jax.numpy as jnp
import pytest

from stylecrafter_jax.checkpoints.bundle import read_config
from stylecrafter_jax.plan.tasks import training
from stylecrafter_jax.train import loop, setup
from stylecrafter_jax.train.stages import STAGES
from tests.train.conftest import changed


def kinds(args):
    return {
        jax.tree_util.keystr(path): (x.shape, str(x.dtype))
        for path, x in jax.tree_util.tree_leaves_with_path(args)
    }


@pytest.mark.parametrize("stage", ["stage1", "stage2", "base"])
def test_a_plan_is_of_the_steps_that_train(
    monkeypatch, tmp_path, small_bundle, experiment, clips, stage
):
    if stage != "stage1":
        experiment = changed(experiment, stage=stage, data__videos=str(clips))
    seen = {}

    def build_step(experiment, start, tx, mode):
        def step(state, *args):
            seen[mode] = kinds((state, *args))
            state = state._replace(step=state.step + 1)
            return state, {"loss": jnp.float32(1), "grad_norm": jnp.float32(1), "skipped": 0}

        return step

    monkeypatch.setattr(setup, "build_step", build_step)
    loop.train(experiment, tmp_path / "run", progress=False)
    task = training(experiment, read_config(small_bundle))
    modes = [STAGES[stage].image_mode, STAGES[stage].video_mode]
    planned = zip([mode for mode in modes if mode], task.programs, strict=True)
    assert {mode: kinds(program.args) for mode, program in planned} == seen


def test_an_encoder_has_no_plan(experiment, small_bundle):
    with pytest.raises(ValueError, match="autoencoder is no stage that a plan can be made for"):
        training(changed(experiment, stage="autoencoder"), read_config(small_bundle))
