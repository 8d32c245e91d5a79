"""A small experiment on a few real pictures and clips."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax.checkpoints.store import TORN, Store
from stylecrafter_jax.config_json import from_dict, to_dict
from stylecrafter_jax.models.networks import networks, parameter_shapes
from stylecrafter_jax.train import setup
from stylecrafter_jax.train.events import read_events
from stylecrafter_jax.train.experiment import (
    DataConfig,
    Experiment,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from stylecrafter_jax.train.means import LOSS_T, by_timestep
from stylecrafter_jax.train.metrics_log import read_metrics
from stylecrafter_jax.train.optimizer import make_optimizer
from stylecrafter_jax.train.runs import CHECKPOINTS, merged
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.start import load_start
from stylecrafter_jax.train.step import init_state, make_train_step
from stylecrafter_jax.train.throughput import is_measured
from tests.conftest import SMALL
from tests.data.conftest import numbered_clip, picture
from tests.parity import weights

# Sums over devices are added in another order; Adam divides the small ones by their own size.
LOSS, WEIGHTS = 1e-5, 2e-4
# For runs of the networks themselves: of a gradient that is nothing but rounding, as of what the
# last norm takes out, Adam makes whole steps with its usual 1e-8, and with this one none.
EPS, CLOSE = 1e-4, 1e-6


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of 5 pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures") / "pictures"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.jpg").write_bytes(picture(24 + i, 40, seed=i))
        (folder / f"{i}.txt").write_text(f"thing {i}")
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """A folder of 3 clips with captions."""
    folder = tmp_path_factory.mktemp("clips") / "clips"
    folder.mkdir()
    for i in range(3):
        numbered_clip(folder / f"{i}.mp4", 6)
        (folder / f"{i}.txt").write_text(f"motion {i}")
    return folder


@pytest.fixture
def experiment(small_bundle, pictures):
    """Stage 1 on the pictures, in float32 on one device: two a batch, three steps."""
    return Experiment(
        stage="stage1",
        bundle=str(small_bundle),
        data=DataConfig(
            images=str(pictures),
            height=8,
            width=8,
            frames=2,
            style_short_side=16,
            style_size=8,
            image_batch=2,
            video_batch=1,
            image_share=0.5,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=TrainConfig(
            steps=3,
            save_every=2,
            log_every=1,
            ema_decay=0.9,
            compute_dtype="float32",
            frozen_dtype="float32",
        ),
        mesh=MeshConfig(data=1),
    )


def changed(experiment, **settings):
    """The experiment with settings such as `train__steps=6` replaced."""
    values = to_dict(experiment)
    for name, value in settings.items():
        *branches, leaf = name.split("__")
        node = values
        for branch in branches:
            node = node[branch]
        node[leaf] = value
    return from_dict(Experiment, values)


def toy_loss(params, batch, keys):
    """A loss of all weights, the pixels and the keys of their rows that compiles at once.

    Of each weight it is the mean over rows of the squared distance from the row's light, all in one
    sum: one for each weight takes ten times as long to compile. A row that is black is not finite,
    and one that is white is far from all others.
    """
    rows = jnp.mean(batch["pixels"].astype(jnp.float32), axis=(1, 2, 3, 4)) / 255.0
    rows = jnp.where(rows < 0.01, jnp.nan, jnp.where(rows > 0.99, 1e3, rows))
    lights = rows + jax.vmap(jax.random.normal)(keys)
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(keys)
    light, spread = jnp.mean(lights), jnp.mean(jnp.square(lights))
    flat = jnp.concatenate([w.astype(jnp.float32).ravel() for w in params.values()])
    shares = jnp.concatenate([jnp.full(w.size, 1.0 / w.size) for w in params.values()])
    error = jnp.sum(shares * flat * (flat - 2.0 * light)) + len(params) * spread
    return error, {"light": light, LOSS_T: by_timestep(rows, t, 1000)}


@functools.cache
def toy_step(optimizer, steps, ema_decay):
    """The step of `toy_loss`, compiled once for all tests."""
    if optimizer.schedule == "constant" and steps != 1:
        return toy_step(optimizer, 1, ema_decay)
    return make_train_step(toy_loss, make_optimizer(optimizer, steps), ema_decay=ema_decay)


def toy_build_step(experiment, start, tx, mode):
    """In place of `setup.build_step`: whatever the mode, the step of `toy_loss`."""
    return toy_step(experiment.optimizer, experiment.train.steps, experiment.train.ema_decay)


@pytest.fixture
def toy(monkeypatch):
    """Runs whose networks are `toy_loss`: the laws of the loop hold for any loss."""
    monkeypatch.setattr(setup, "build_step", toy_build_step)
    monkeypatch.setattr(setup, "build_loss", lambda experiment, start, mode: toy_loss)


def state_of(run, experiment, start_bundle):
    """The state in a run's newest checkpoint."""
    stage = STAGES[experiment.stage]
    start = load_start(Path(start_bundle), stage, frozen_dtype=np.float32, seed=0)
    tx = make_optimizer(experiment.optimizer, experiment.train.steps)
    store = Store(run / "checkpoints")
    try:
        return store.restore(init_state(start.trainable, tx)).state
    finally:
        store.close()


def rows(run):
    """The metrics that a run logged and that depend on the steps alone."""
    return [{k: v for k, v in row.items() if not is_measured(k)} for row in read_metrics(run)]


def history(run):
    """What happened to a run, and after which step."""
    return [(row["event"], row["step"]) for row in read_events(run)]


def assert_same_run(one, other, experiment):
    """Two runs have the same losses, weights, averages and optimizer, bit for bit."""
    assert rows(one) == rows(other)
    states = [state_of(run, experiment, experiment.bundle) for run in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def saved_steps(run):
    """The steps of a run's complete checkpoints."""
    store = Store(run / CHECKPOINTS)
    try:
        return store.steps()
    finally:
        store.close()


def torn(run):
    """What saves that were cut off have left in a run."""
    return list((run / CHECKPOINTS).glob(f"*{TORN}"))


def losses(run):
    """The losses that a run logged; NaN where the update was skipped."""
    return np.array([row["loss"] for row in read_metrics(run)], np.float64)


def assert_same_training(one, other, atol=WEIGHTS):
    """Two runs have the same losses and weights, but for the order of sums."""
    np.testing.assert_allclose(losses(one), losses(other), rtol=LOSS)
    ours, theirs = (merged(run, "last")[1] for run in (one, other))
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=atol, err_msg=name)


@pytest.fixture(scope="session")
def nets():
    """The networks of the small model, and its parameters."""
    shapes = parameter_shapes(SMALL)
    params = {n: jnp.asarray(weights.tensor(n, shape.shape)) for n, shape in shapes.items()}
    return networks(dataclasses.replace(SMALL)), params


@pytest.fixture(scope="session")
def batch():
    """Precomputed features of four pictures."""
    rng = np.random.default_rng(0)
    arrays = {
        "mean": rng.standard_normal((4, 1, 4, 4, 4)),
        "logvar": np.full((4, 1, 4, 4, 4), -20.0),
        "text": rng.standard_normal((4, 5, 24)),
        "image": rng.standard_normal((4, 6, 40)),
    }
    return {name: jax.device_put(x.astype(np.float32)) for name, x in arrays.items()}
