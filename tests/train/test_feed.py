"""What processes say to each other with every batch, and what becomes of it."""

import threading
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from stylecrafter_jax import sharding
from stylecrafter_jax.checkpoints.store import Store
from stylecrafter_jax.data.device import DeviceBatches
from stylecrafter_jax.data.ledger import Fault, Ledger
from stylecrafter_jax.data.pipeline import Batches
from stylecrafter_jax.sharding import check_processes, run_mesh
from stylecrafter_jax.train import feed as feeding
from stylecrafter_jax.train.feed import Feed
from stylecrafter_jax.train.loop import _Loop
from stylecrafter_jax.train.means import Means
from stylecrafter_jax.train.spikes import Spikes
from stylecrafter_jax.train.step import FAILED, GO, HALT, STOP, init_state
from tests.train.conftest import changed


def ledger(read, index):
    own = Ledger(1.0)
    own.add("pictures", read - 1, [Fault(index, f"{index}.jpg", "bad")])
    return own.get_state()


@pytest.fixture
def shared_rows(monkeypatch):
    """A process of four: 0 and 1 have blocks 0 and 2 of a batch, 2 and 3 blocks 1 and 3."""
    batches = MagicMock(spec=DeviceBatches)
    batches.batches = MagicMock(spec=Batches)
    batches.get_state.return_value = {"step": 0, "ledger": ledger(4, 10)}
    batches.batches.ledger = Ledger(1.0)
    batches.batches.names_of = lambda step, index: ("pictures", [f"{i}.jpg" for i in index])
    theirs = [[0, 2], [0, 2], [1, 3], [1, 3]]

    def gathered(own):
        if isinstance(own[1], dict):
            counted = ledger(4, 10), ledger(4, 10), ledger(6, 30), ledger(6, 30)
            return [list(pair) for pair in zip(theirs, counted, strict=True)]
        rows = {0: [10, 11, 14, 15], 1: [12, 13, 16, 17]}
        names = [rows[blocks[0]] for blocks in theirs]
        return [[b, n, [f"{i}.jpg" for i in n]] for b, n in zip(theirs, names, strict=True)]

    monkeypatch.setattr(feeding, "several", lambda: True)
    monkeypatch.setattr(feeding, "gathered", gathered)
    monkeypatch.setattr(feeding, "own_blocks", lambda mesh: ([0, 2], 4))
    return Feed(batches, MagicMock(spec=Mesh), 0)


def test_a_batch_is_named_row_by_row_and_each_row_once(shared_rows):
    found = shared_rows.names(1, np.array([10, 11, 14, 15]))
    assert found["index"] == list(range(10, 18))
    assert found["records"] == [f"{i}.jpg" for i in range(10, 18)]


def test_what_processes_with_the_same_rows_read_is_counted_once(shared_rows):
    state = shared_rows.state(0)
    assert state["ledger"]["read"] == {"pictures": 10}
    assert state["ledger"]["refused"] == {"pictures": 2}


def steps_that_say(monkeypatch, experiment, said):
    """Returns a loop whose steps say these things, and the steps that it saves."""
    saved, numbers = [], iter(range(1, 100))

    def step(state, frozen, batch, key):
        halt = said[next(numbers) - 1]
        after = state._replace(step=state.step + (halt < FAILED))
        return after, {"loss": 1.0, "grad_norm": 1.0, "skipped": 0.0, HALT: halt}

    feed = MagicMock(spec=Feed, error=None)
    feed.next.side_effect = lambda stop: ({"x": np.zeros(1)}, np.zeros(1))
    feed.verdict.side_effect = lambda said, stop: said
    tools, store = MagicMock(), MagicMock(spec=Store)
    tools.means, tools.spikes = MagicMock(spec=Means), MagicMock(spec=Spikes)
    values = {"loss": 1.0, "grad_norm": 1.0, "skipped": 0.0}
    tools.means.add.return_value = tools.means.values.return_value = values
    tools.spikes.look.return_value = None
    tools.measured.return_value = {}
    tools.get_state.return_value = {}
    feed.state.return_value = {}
    store.save.side_effect = lambda done, state, data, loss: saved.append((done, int(state.step)))
    parts = MagicMock(sampler=None, mesh=None)
    loop = _Loop(experiment, parts, {}, feed, store, None, tools, {})
    monkeypatch.setattr(_Loop, "_step", lambda self, *args: step(args[0], {}, args[1], args[2]))
    state = init_state({"w": jnp.zeros(1)}, optax.sgd(1.0))
    return loop.iterate(state, 0, threading.Event()), saved


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ([GO, GO, STOP, STOP], 4),  # seen one step late
        ([GO, GO, GO, FAILED, FAILED], 3),
        ([GO, GO, STOP, FAILED, FAILED], 3),  # a failure goes before a signal
        ([STOP, FAILED, FAILED], 1),
    ],
)
def test_what_is_saved_is_called_what_it_is(monkeypatch, experiment, said, taken):
    long = changed(experiment, train__steps=50, train__save_every=100, train__log_every=100)
    assert steps_that_say(monkeypatch, long, said) == (taken, [(taken, taken)])


def test_every_process_takes_part_with_as_many_devices(monkeypatch):
    chips = [SimpleNamespace(id=i, process_index=i // 4, platform="cpu") for i in range(8)]
    monkeypatch.setattr(
        sharding, "make_mesh", lambda chips, **_: MagicMock(spec=Mesh, devices=chips)
    )
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert run_mesh(None, rows=16, devices=chips).devices.size == 8
    six = run_mesh(None, rows=12, devices=chips)  # four of one process and two of the other
    with pytest.raises(ValueError, match="must take part, with the same number of devices"):
        check_processes(six, "the mesh")
