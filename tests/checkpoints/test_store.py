"""Training checkpoints: the newest and the best stay, a broken one never does."""

import errno
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax.checkpoints.store import TORN, Store
from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from tests.limits import largest_file


class State(NamedTuple):
    """Some arrays."""

    step: object
    weights: dict


def state(value: float, size: int = 3) -> State:
    return State(jnp.int32(7), {"a/b": jnp.full((size,), value), "c": jnp.ones(())})


@pytest.fixture
def make_store(tmp_path):
    stores = []

    def make(**settings):
        stores.append(Store(tmp_path / "checkpoints", **settings))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def test_state_and_data_come_back(make_store):
    store = make_store()
    store.save(7, state(2.5), {"step": 7, "names": ["x"]}, 0.5)
    store.wait()
    found = store.restore(state(0.0))
    assert (found.step, found.data) == (7, {"step": 7, "names": ["x"]})
    assert isinstance(found.state, State)
    np.testing.assert_array_equal(found.state.weights["a/b"], [2.5, 2.5, 2.5])


def test_newest_and_best_stay(make_store):
    store = make_store(keep_last=2, keep_best=1)
    for step, loss in enumerate((3.0, 1.0, 4.0, 2.0, 5.0), start=1):
        store.save(step, state(step), {}, loss)
        store.wait()
    assert store.steps() == [2, 4, 5]
    assert store.latest() == 5


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_never_saved(make_store, loss):
    store = make_store(keep_last=1, keep_best=0)
    store.save(1, state(1.0), {}, 0.5)
    with pytest.raises(CheckpointError, match="this state is not saved"):
        store.save(2, state(np.nan), {}, float(loss))
    store.wait()
    assert store.steps() == [1]


def test_another_shape_does_not_fit(make_store):
    store = make_store()
    store.save(1, state(1.0), {}, 0.5)
    store.wait()
    with pytest.raises(CheckpointError, match="does not fit"):
        store.restore(State(jnp.int32(0), {"other": jnp.zeros(3)}))
    with pytest.raises(CheckpointError, match="has no checkpoint of step 9"):
        store.restore(state(0.0), 9)


def test_a_part_is_read_into_host_memory_and_the_rest_left_out(make_store):
    store = make_store()
    store.save(1, State(jnp.int32(3), {"a": jnp.ones(3), "b": jnp.zeros((2, 2))}), {}, 0.5)
    store.wait()
    wanted = jax.ShapeDtypeStruct((3,), np.float32)
    found = store.in_host_memory(State(..., {"a": wanted, "b": ...}))
    assert isinstance(found, State) and (found.step, found.weights["b"]) == (..., ...)
    assert isinstance(found.weights["a"], np.ndarray)
    np.testing.assert_array_equal(found.weights["a"], [1.0] * 3)
    for other in (
        State(..., {"a": jax.ShapeDtypeStruct((4,), np.float32), "b": ...}),
        State(..., {"a": wanted}),
    ):
        with pytest.raises(CheckpointError, match="of step 1 in .* does not fit") as error:
            store.in_host_memory(other)
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="has no checkpoint of step 9"):
        store.in_host_memory(State(..., {"a": wanted, "b": ...}), 9)


def test_a_disk_that_is_full_is_one_line_and_loses_nothing(make_store):
    store = make_store()
    store.save(1, state(1.0), {}, 0.5)
    store.wait()
    rng = np.random.default_rng(0)
    large = State(jnp.int32(2), {"a/b": jnp.asarray(rng.standard_normal(10**6)), "c": jnp.ones(())})
    with (
        largest_file(100_000),
        pytest.raises(CheckpointError, match="cannot write a checkpoint") as error,
    ):
        store.save(2, large, {}, 0.4)
        store.wait()
    message = str(error.value)
    assert "\n" not in message and ": File too large; the earlier ones are intact" in message
    again = make_store()
    assert again.latest() == 1
    np.testing.assert_array_equal(again.restore(state(0.0)).state.weights["a/b"], [1.0] * 3)


def test_the_systems_reason_is_told_and_not_its_number(make_store, monkeypatch):
    store = make_store()

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "7.tmp", None, "7")

    monkeypatch.setattr(store._manager, "save", refused)
    with pytest.raises(CheckpointError, match=r"checkpoints: Permission denied; the earlier ones"):
        store.save(7, state(1.0), {}, 0.5)


def test_what_a_killed_save_left_is_removed_and_nothing_else(make_store, tmp_path):
    store = make_store()
    store.save(1, state(1.0), {}, 0.5)
    store.wait()
    torn = tmp_path / "checkpoints" / f"2{TORN}" / "state"
    torn.mkdir(parents=True)
    (torn / "half").write_bytes(b"half")
    again = make_store()
    assert again.steps() == [1]
    again.sweep()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    np.testing.assert_array_equal(again.restore(state(0.0)).state.weights["a/b"], [1.0] * 3)
