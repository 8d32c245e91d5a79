import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stylecrafter_jax.train.step import init_state, make_train_step
from stylecrafter_jax.train.throughput import (
    Meter,
    Work,
    is_measured,
    memory,
    peak_flops,
    step_flops,
    work,
)


class Clock:
    """A clock that stands still unless it is moved."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_memory_is_of_the_fullest_chip(monkeypatch):
    class Chip:
        def __init__(self, **stats):
            self.memory_stats = lambda: stats

    chips = [Chip(bytes_in_use=1e9, peak_bytes_in_use=5e9), Chip(bytes_in_use=2e9), Chip()]
    monkeypatch.setattr(jax, "local_devices", lambda: chips)
    found = memory()
    assert (found["memory/in_use"], found["memory/peak"]) == (2.0, 5.0)


def passes(meter, clock, what, seconds):
    with meter.time(what):
        clock.now += seconds


def test_rates_by_hand(clock):
    """Two steps on 8 pictures and one on 2 clips in 10 s on 4 chips of 5 TFLOP/s each."""
    meter = Meter(chips=4, peak=5e12, clock=clock)
    passes(meter, clock, "compile", 60.0)
    passes(meter, clock, "samples", 30.0)
    passes(meter, clock, "data", 1.0)
    passes(meter, clock, "data", 1.5)
    clock.now += 7.5
    for each in (work(8, True, 16e12), work(8, True, 16e12), work(2, False, 8e12)):
        meter.add(each)
    assert meter.values() == pytest.approx(
        {
            "seconds": 10.0 / 3,
            "speed/images": 0.4,
            "speed/videos": 0.05,
            "speed/tflops": 1.0,
            "speed/mfu": 0.2,
            "speed/data_wait": 0.25,
            "speed/compile": 60.0,
            "speed/samples": 30.0,
        }
    )
    clock.now += 4.0
    meter.add(Work(1))
    assert meter.values() == pytest.approx(
        {"seconds": 4.0, "speed/images": 1 / 16, "speed/data_wait": 0.0}
    )


def test_a_chip_without_data_sheet_has_no_utilization(clock):
    meter = Meter(chips=1, peak=None, clock=clock)
    meter.add(Work(1, 0, 1e12))
    clock.now += 1.0
    found = meter.values()
    assert found["speed/tflops"] == 1.0 and "speed/mfu" not in found
    assert jax.default_backend() == "cpu" and peak_flops() is None


def test_checkpoints_are_timed_until_they_are_written(clock):
    meter = Meter(chips=1, peak=None, clock=clock)
    passes(meter, clock, "save", 2.0)
    meter.look(saving=True)
    assert meter.values()["checkpoint/blocked"] == 2.0
    clock.now += 5.0
    meter.look(saving=False)
    meter.look(saving=False)
    clock.now += 1.0
    found = meter.values()
    assert found["checkpoint/written"] == 7.0 and "checkpoint/blocked" not in found
    assert "checkpoint/written" not in meter.values()


def test_what_depends_on_the_clock_is_told_from_what_does_not():
    measured = ["seconds", "speed/images", "speed/mfu", "memory/host", "checkpoint/written"]
    others = ["loss", "loss_t/0-249", "scale/output_blocks.3.1", "grad_norm", "learning_rate"]
    assert all(map(is_measured, measured)) and not any(map(is_measured, others))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_operations_of_a_step_and_no_second_trace(accumulate):
    """x w forward and w's gradient backward: 2 * 2 * 8 * 4 * 3 operations, traced once."""
    traced = []

    def loss(params, batch, key):
        traced.append(batch["x"].shape)
        return jnp.mean(jnp.square(batch["x"] @ params["w"])), {}

    tx = optax.sgd(0.1)
    step = make_train_step(loss, tx, ema_decay=0.9, accumulate=accumulate)
    args = (init_state({"w": jnp.ones((4, 3))}, tx), {}, {"x": jnp.ones((8, 4))}, jax.random.key(0))
    assert step_flops(step, *args) == 2 * 2 * 8 * 4 * 3
    times = len(traced)
    state, _ = step(*args)
    step(state, *args[1:])
    assert len(traced) == times


def test_a_function_that_is_not_jitted_has_no_count():
    assert step_flops(lambda x: x, 1) == 0.0


def test_memory_of_this_process_is_counted_in_gigabytes():
    before = memory()["memory/host"]
    block = np.ones(40_000_000, np.float64)
    grown = memory()["memory/host"] - before
    assert 0.25 < grown < 0.45 and block[-1] == 1.0  # 0.32 GB
