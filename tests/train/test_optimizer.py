"""Learning rates by hand, and what clipping does to a gradient."""

import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax.train.experiment import OptimizerConfig
from stylecrafter_jax.train.optimizer import learning_rate, make_optimizer


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({}, {0: 1.0, 999: 1.0}),
        # Up in four equal steps, then level.
        ({"warmup_steps": 4}, {0: 0.0, 1: 0.25, 2: 0.5, 4: 1.0, 50: 1.0}),
        # Straight from 1 to 1 % in 100 steps, then level: half-way 0.505.
        ({"schedule": "linear"}, {0: 1.0, 50: 0.505, 100: 0.01, 500: 0.01}),
        ({"schedule": "linear", "decay_steps": 20}, {10: 0.505, 20: 0.01, 100: 0.01}),
        # cos(pi / 2) = 0 at the middle: (1 + 0) / 2 between 1 and 1 %.
        ({"schedule": "cosine"}, {0: 1.0, 50: 0.505, 100: 0.01}),
        # Warm-up counts as part of the decay's length: the middle of steps 20 to 100 is 60.
        ({"schedule": "cosine", "warmup_steps": 20}, {10: 0.5, 20: 1.0, 60: 0.505, 100: 0.01}),
    ],
)
def test_learning_rates_computed_by_hand(settings, values):
    rate = learning_rate(OptimizerConfig(learning_rate=1.0, **settings), 100)
    for step, value in values.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-6, atol=1e-9)


def test_first_adamw_step_is_the_sign_of_the_gradient_and_decay():
    tx = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), 10)
    params = {"w": jnp.array([2.0, -4.0])}
    updates, _ = tx.update({"w": jnp.array([3.0, -0.01])}, tx.init(params), params)
    # -rate * (sign(gradient) + decay * weight)
    np.testing.assert_allclose(updates["w"], [-0.2, 0.3], rtol=1e-5)


def test_clipping_limits_the_norm_of_all_gradients_together():
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.0, clip_norm=1.0, eps=1e8)
    tx = make_optimizer(config, 10)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    updates, _ = tx.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, tx.init(params), params)
    # So large an eps makes the update proportional to the gradient, clipped from 5 to 1.
    np.testing.assert_allclose(updates["a"], -0.1 * 0.6 / 1e8, rtol=1e-4)
    np.testing.assert_allclose(updates["b"], -0.1 * 0.8 / 1e8, rtol=1e-4)
