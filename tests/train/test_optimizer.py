"""Learning rates by hand, what clipping does to a gradient, and the first steps of optimizers."""

import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax.config import ConfigError
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


@pytest.mark.parametrize("shape", [(6, 4), (3, 3, 2, 5)])
def test_first_muon_step_of_a_kernel_has_the_gradients_directions_at_equal_strength(shape):
    config = OptimizerConfig(name="muon", learning_rate=0.1, weight_decay=0.5)
    tx = make_optimizer(config, 10)
    rng = np.random.default_rng(0)
    weight, gradient = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    params = {"net/kernel": weight}
    updates, _ = tx.update({"net/kernel": gradient}, tx.init(params), params)
    # -rate * (0.2 sqrt(larger side) * orthogonalised gradient + decay * weight)
    matrix = (-updates["net/kernel"] / 0.1 - 0.5 * weight).reshape(-1, shape[-1])
    matrix /= 0.2 * max(matrix.shape) ** 0.5
    left, _, right = np.linalg.svd(gradient.reshape(matrix.shape), full_matrices=False)
    rotated = left.T @ matrix @ right.T
    # Five Newton-Schulz iterations bring singular values near 1, not to 1 (Jordan et al. 2024).
    assert ((np.diag(rotated) > 0.65) & (np.diag(rotated) < 1.25)).all()
    np.testing.assert_allclose(rotated - np.diag(np.diag(rotated)), 0.0, atol=1e-4)


def test_what_is_no_matrix_gets_the_step_of_adamw_with_nesterov_momentum_from_muon():
    names = ("net/bias", "net/embedding", "unet/input_blocks.0.0/kernel", "unet/time_embed/kernel")
    params = {name: jnp.full((3, 3), 2.0) for name in names}
    gradients = {name: jnp.full((3, 3), 0.3) for name in names}
    config = OptimizerConfig(name="muon", learning_rate=0.1, weight_decay=0.5)
    tx = make_optimizer(config, 10)
    updates, _ = tx.update(gradients, tx.init(params), params)
    # b1 m / (1 - b1^2) + g with m = (1 - b1) g, over |g| (Dozat 2016, algorithm 2, b1 constant).
    direction = 0.9 * 0.1 / (1 - 0.9**2) + 1.0
    for name in names:
        wanted = -0.1 * (direction + 0.5 * 2.0)
        np.testing.assert_allclose(updates[name], wanted, rtol=1e-5, err_msg=name)


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"optimizer\.not_matrices is no pattern: missing"):
        OptimizerConfig(not_matrices="(")
