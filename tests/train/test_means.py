import dataclasses
import json

import jax.numpy as jnp
import numpy as np

from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.scales import dual_layers
from stylecrafter_jax.train.means import LOSS_T, SCALE, Means, by_layer, by_timestep, labels

NAMES = {LOSS_T: ["0-9", "10-19", "20-29", "30-39"], SCALE: ["first", "second"]}


def test_rows_are_counted_in_the_quarter_of_their_timestep():
    got = by_timestep(jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]), jnp.array([0, 9, 10, 39, 30]), 40)
    np.testing.assert_array_equal(got, [[3, 2], [4, 1], [0, 0], [24, 2]])


def test_rows_that_drop_their_style_have_no_factor():
    factors = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    got = by_layer(factors, jnp.array([False, True, False]))
    np.testing.assert_array_equal(got, [[6, 2], [8, 2]])
    np.testing.assert_array_equal(by_layer(factors, None), [[9, 3], [12, 3]])


def test_means_are_those_of_all_rows_since_the_line_and_absent_parts_are_absent():
    means = Means(NAMES)
    ones = {"loss": np.array(0.5), LOSS_T: np.array([[3, 2], [0, 0], [0, 0], [5, 1]])}
    assert means.add(ones) == {"loss": 0.5}
    means.add({LOSS_T: np.array([[3, 1], [0, 0], [1, 4], [0, 0]])})
    assert means.values() == {"loss_t/0-9": 2.0, "loss_t/20-29": 0.25, "loss_t/30-39": 5.0}
    means.add({LOSS_T: np.full((4, 2), np.nan)})  # of an update that was skipped
    assert means.values()["loss_t/0-9"] == 2.0
    means.clear()
    assert means.values() == {}


def test_totals_survive_a_stop_exactly():
    steps = [{SCALE: np.random.default_rng(i).random((2, 2), np.float32)} for i in range(5)]
    straight, parts = Means(NAMES), Means(NAMES)
    for step in steps:
        straight.add(step)
        parts.add(step)
        state = json.loads(json.dumps(parts.get_state()))
        parts = Means(NAMES)
        parts.set_state(state)
    assert parts.values() == straight.values()
    assert set(parts.values()) == {"scale/first", "scale/second"}


def test_parts_are_named_for_timesteps_and_layers():
    names = labels(ModelConfig())
    assert names[LOSS_T] == ["0-249", "250-499", "500-749", "750-999"]
    assert names[SCALE][0] == "input_blocks.1.1" and names[SCALE][-1] == "output_blocks.11.1"
    assert len(names[SCALE]) == len(dual_layers(ModelConfig())) == 16


def test_an_uneven_schedule_is_split_where_the_steps_are_counted():
    config = ModelConfig()
    few = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, timesteps=10))
    counts = np.asarray(by_timestep(jnp.ones(10), jnp.arange(10), 10))[:, 1]
    ends = [name.split("-") for name in labels(few)[LOSS_T]]
    assert [int(b) - int(a) + 1 for a, b in ends] == counts.tolist()
    assert (ends[0][0], ends[-1][1]) == ("0", "9")
