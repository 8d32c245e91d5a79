"""Runs over several devices train what one device trains."""

import jax
import numpy as np
import pytest

from stylecrafter_jax import sharding
from stylecrafter_jax.checkpoints.store import Store
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.train.loop import train
from stylecrafter_jax.train.metrics_log import read_metrics
from stylecrafter_jax.train.optimizer import make_optimizer
from stylecrafter_jax.train.step import init_state
from tests.train.conftest import CLOSE, EPS, assert_same_training, changed


@pytest.fixture
def eight(experiment, everything_is_split):
    """The experiment on eight devices, with a row of a batch for each."""
    return changed(experiment, data__image_batch=8)


def on(experiment, data, fsdp, **settings):
    return changed(experiment, mesh={"data": data, "fsdp": fsdp}, **settings)


@pytest.mark.slow
def test_any_mesh_trains_as_one_device_and_goes_on_on_another(tmp_path, eight, toy):
    one, split, moved = (tmp_path / name for name in ("one", "split", "moved"))
    train(eight, one, progress=False)
    samples = {"every": 3, "prompts": ["a thing"], "steps": 2, "height": 8, "width": 8}
    train(on(eight, None, 2, samples=samples), split, progress=False)
    assert_same_training(one, split)
    assert (split / "samples/step_000003.png").is_file()
    for data, fsdp, steps in ((8, 1, 1), (1, 4, 3)):
        train(on(eight, data, fsdp, train__steps=steps), moved, progress=False)
    assert_same_training(one, moved)


@pytest.mark.slow
def test_frozen_weights_may_be_whole_on_every_device(tmp_path, eight):
    one, split = tmp_path / "one", tmp_path / "split"
    train(eight, one, progress=False)
    mesh = {"data": 2, "fsdp": 4, "replicate_frozen": True}
    train(changed(eight, mesh=mesh), split, progress=False)
    assert_same_training(one, split)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1), (1, 8), (2, 4), (2, 1), (2, 2, 1, 2), (2, 1, 2, 2)])
def test_the_model_itself_trains_on_a_mesh_as_on_one_device(tmp_path, eight, sizes):
    one, split = tmp_path / "one", tmp_path / "split"
    train(eight, one, progress=False)
    mesh = dict(zip(("data", "fsdp", "frames", "tensor"), sizes, strict=False))
    train(changed(eight, mesh=mesh), split, progress=False)
    assert_same_training(one, split)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 2, 1), (1, 2, 2, 2), (4, 1, 2, 1)])
def test_pictures_and_clips_train_on_a_mesh_as_on_one_device(tmp_path, eight, clips, sizes):
    kinds = {"data__videos": str(clips), "data__video_batch": 8}
    both = changed(eight, stage="stage2", optimizer__eps=EPS, **kinds)
    one, split = tmp_path / "one", tmp_path / "split"
    train(both, one, progress=False)
    mesh = dict(zip(("data", "fsdp", "frames", "tensor"), sizes, strict=True))
    train(changed(both, mesh=mesh), split, progress=False)
    seen = {name for row in read_metrics(one) for name in row}
    assert {"speed/images", "speed/videos"} <= seen
    assert_same_training(one, split, CLOSE)


def test_what_is_large_is_split_and_what_is_saved_is_whole(tmp_path, eight):
    mesh = sharding.run_mesh(2, 4, rows=8)
    weights = {"a/kernel": np.ones((3, 64), np.float32), "b/bias": np.ones(5, np.float32)}
    tx = make_optimizer(eight.optimizer, 3)
    state = sharding.put_weights(init_state(weights, tx), mesh)
    for tree in (state.trainable, state.ema):
        assert tree["a/kernel"].addressable_shards[0].data.shape == (3, 16)
        assert tree["b/bias"].is_fully_replicated
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (3, 64)]
    assert moments and all(x.addressable_shards[0].data.shape == (3, 16) for x in moments)
    store = Store(tmp_path / "checkpoints")
    store.save(1, state, {}, 0.5)
    store.wait()
    here = sharding.on_one_device(state)
    assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(here))
    restored = store.restore(here).state
    store.close()
    np.testing.assert_array_equal(restored.trainable["a/kernel"], weights["a/kernel"])


def test_as_many_devices_as_the_rows_can_be_split_over():
    def shape(data, fsdp, rows, count=8):
        mesh = sharding.run_mesh(data, fsdp, rows=rows, devices=jax.devices()[:count])
        return mesh.shape["data"], mesh.shape["fsdp"]

    if jax.device_count() < 8:
        pytest.skip("eight devices are not here")
    assert [shape(None, 1, rows) for rows in (16, 4, 3)] == [(8, 1), (4, 1), (3, 1)]
    assert [shape(*wanted) for wanted in ((None, 2, 12), (None, 4, 4))] == [(3, 2), (1, 4)]
    assert shape(2, 1, 16) == (2, 1) and shape(None, 1, 5, count=1) == (1, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mesh": {"data": 3, "fsdp": 4}}, "data=3 fsdp=4 takes 12 devices, got 8"),
        ({"mesh": {"data": 4, "fsdp": 1}}, "mesh: data=4 fsdp=1: 2 rows cannot be split over 4"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(tmp_path, experiment, settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        train(changed(experiment, **settings), tmp_path / "run", progress=False)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
