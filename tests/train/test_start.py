"""Weights come from files through host memory to the devices: each gets its part, and once."""

import collections
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax import sharding
from stylecrafter_jax.checkpoints.bundle import load_bundle
from stylecrafter_jax.checkpoints.store import Store
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.params import nbytes
from stylecrafter_jax.train import loop, setup
from stylecrafter_jax.train import step as steps
from stylecrafter_jax.train.objective import EMPTY_TEXT
from stylecrafter_jax.train.optimizer import make_optimizer
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.start import load_start
from tests.train.conftest import changed

SMALL = 2**15  # bytes of batches, keys and counts


@pytest.fixture
def held():
    """Returns what each device holds, in bytes, of the arrays made since the test began."""
    before = jax.live_arrays()  # which keeps them, so that no new one has the id of an old one

    def held():
        old, held = {id(x) for x in before}, dict.fromkeys(jax.local_devices(), 0)
        for x in jax.live_arrays():
            if id(x) not in old:
                part = np.prod(x.sharding.shard_shape(x.shape), dtype=int) * x.dtype.itemsize
                for device in x.sharding.addressable_devices:
                    held[device] += part
        return np.array(list(held.values()))

    return held


def test_a_start_is_in_host_memory_and_rounds_as_the_devices_do(small_bundle, held):
    bfloat16 = jnp.dtype("bfloat16")
    start = load_start(small_bundle, STAGES["stage1"], frozen_dtype=bfloat16, seed=0)
    assert held().max() < SMALL
    assert all(type(x) is np.ndarray for x in {**start.frozen, **start.trainable}.values())
    _, params = load_bundle(small_bundle, expected=parameter_shapes)
    assert {x.dtype.name for x in start.trainable.values()} == {"float32"}
    assert start.frozen.keys() | start.trainable.keys() == {*params, EMPTY_TEXT}
    assert {x.dtype.name for name, x in start.frozen.items() if name in params} == {"bfloat16"}
    for name in start.frozen.keys() & params.keys():
        rounded = jnp.asarray(params[name]).astype(jnp.bfloat16)
        np.testing.assert_array_equal(start.frozen[name], rounded, err_msg=name)


@pytest.mark.parametrize("fsdp", [1, 8])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_state_made_in_place_is_the_state(experiment, monkeypatch, fsdp, optimizer):
    if jax.device_count() < fsdp:
        pytest.skip("eight devices are not here")
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)
    mesh = None if fsdp == 1 else sharding.run_mesh(1, fsdp, rows=fsdp)
    rng = np.random.default_rng(0)
    trainable = {"a/kernel": rng.normal(size=(3, 64)), "b/bias": rng.normal(size=5)}
    trainable = {name: value.astype(np.float32) for name, value in trainable.items()}
    tx = make_optimizer(changed(experiment, optimizer__name=optimizer).optimizer, 3)
    wanted = sharding.put_weights(steps.init_state(trainable, tx), mesh)
    state = steps.put_state(trainable, tx, mesh)

    def check(x, y, z):
        np.testing.assert_array_equal(x, y)
        assert (x.sharding, x.committed, x.weak_type) == (y.sharding, y.committed, y.weak_type)
        assert (z.shape, z.dtype, z.sharding) == (y.shape, y.dtype, y.sharding)

    jax.tree.map(check, state, wanted, steps.state_like(trainable, tx, mesh))
    shards = [s.data for x in jax.tree.leaves(state) for s in x.addressable_shards]
    assert len({x.unsafe_buffer_pointer() for x in shards}) == len(shards)  # steps donate them


@functools.partial(jax.jit, donate_argnames="state")
def idle(state, frozen, batch, key):
    """A step that compiles at once."""
    metrics = {"loss": jnp.float32(0.0), "grad_norm": jnp.float32(0.0), "skipped": state.skipped}
    return state._replace(step=state.step + 1), metrics


@pytest.mark.parametrize("fsdp", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_a_device_holds_its_part_of_state_and_frozen_weights_once(
    experiment, tmp_path, monkeypatch, held, fsdp
):
    if jax.device_count() < fsdp:
        pytest.skip("eight devices are not here")
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)
    seen, sizes, hosts = collections.defaultdict(list), {}, []

    def noting(name, function):
        """The function, noting as it begins what devices hold, and whether the host lets go."""

        def noted(*args, **kwargs):
            gc.collect()
            seen[name].append((held(), all(host() is None for host in hosts)))
            return function(*args, **kwargs)

        return noted

    def load(*args, **kwargs):
        start = load_start(*args, **kwargs)
        start = start._replace(trainable={k: v.copy() for k, v in start.trainable.items()})
        sizes.update(trainable=nbytes(start.trainable), frozen=nbytes(start.frozen))
        hosts[:] = map(weakref.ref, start.trainable.values())
        return start

    monkeypatch.setattr(setup, "load_start", load)
    monkeypatch.setattr(setup, "build_step", lambda *args: noting("step", idle))
    monkeypatch.setattr(steps, "init_state", noting("state", steps.init_state))
    monkeypatch.setattr(Store, "restore", noting("restore", Store.restore))
    for module in (steps, loop):
        monkeypatch.setattr(module, "put_weights", noting("put", sharding.put_weights))
    mesh = {"data": 1, "fsdp": fsdp}
    eight = changed(experiment, data__image_batch=8, mesh=mesh)
    for number in (1, 2):  # from the start, and from a checkpoint
        loop.train(changed(eight, train__steps=number), tmp_path / "run", progress=False)

    def check(held, least, most):
        # Sides that eight does not divide are whole on each device.
        assert np.all(held[:fsdp] >= least / fsdp), held
        assert np.all(held[:fsdp] <= most / fsdp * (1.0 if fsdp == 1 else 1.15) + SMALL), held
        assert np.all(held[fsdp:] < SMALL) and np.ptp(held[:fsdp]) < SMALL, held

    for here, _ in seen["state"]:  # as it is traced, its argument is there already
        check(here, 0, sizes["trainable"])
    check(seen["restore"][0][0], 0, 0)
    state = 4 * sizes["trainable"]  # weights, average, two moments
    for here, _ in seen["put"]:
        check(here, 0, state)
    assert len(seen["step"]) == 2
    for here, gone in seen["step"]:
        check(here, state + sizes["frozen"], state + sizes["frozen"])
        assert gone
