"""Laws of the step on a model of two numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stylecrafter_jax.train.step import init_state, make_train_step, row_keys

FROZEN = {"scale": jnp.array(2.0)}
KEY = jax.random.key(0)


def quadratic(params, batch, key):
    """Mean over the batch of |scale * w - x|^2."""
    errors = jnp.sum(jnp.square(params["scale"] * params["w"][None] - batch["x"]), -1)
    return jnp.mean(errors), {"mean_x": jnp.mean(batch["x"])}


@pytest.fixture
def batch():
    return {"x": jnp.asarray(np.random.default_rng(0).standard_normal((4, 2)), jnp.float32)}


def start(tx):
    return init_state({"w": jnp.array([1.0, -1.0])}, tx)


def copied(state):
    return jax.tree.map(np.array, state)


def test_plain_gradient_descent_by_hand():
    tx = optax.sgd(0.1)
    step = make_train_step(quadratic, tx, ema_decay=0.75)
    state, metrics = step(start(tx), FROZEN, {"x": jnp.zeros((4, 2))}, KEY)
    # loss = 4 |w|^2 = 8, gradient 8 w, w <- 0.2 w, average 0.75 * old + 0.25 * new.
    np.testing.assert_allclose(metrics["loss"], 8.0, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], 8.0 * np.sqrt(2.0), rtol=1e-6)
    np.testing.assert_allclose(state.trainable["w"], [0.2, -0.2], rtol=1e-6)
    np.testing.assert_allclose(state.ema["w"], [0.8, -0.8], rtol=1e-6)
    assert (int(state.step), int(state.skipped)) == (1, 0)


def test_two_halves_accumulate_to_the_whole(batch):
    tx = optax.adam(1e-2)
    results = []
    for parts in (1, 2):
        step = make_train_step(quadratic, tx, ema_decay=0.9, accumulate=parts)
        results.append(copied(step(start(tx), FROZEN, batch, KEY)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), *results)


def test_a_row_draws_the_same_however_the_batch_is_split(batch):
    """Noise of deviation 10 on every row: halves of the batch would else differ by as much."""

    def noisy(params, batch, keys):
        noise = jax.vmap(lambda key: 10.0 * jax.random.normal(key, (2,)))(keys)
        return quadratic(params, {"x": batch["x"] + noise}, keys)

    tx, results = optax.adam(1e-2), []
    for parts in (1, 2, 4):
        step = make_train_step(noisy, tx, ema_decay=0.9, accumulate=parts)
        state, _ = step(start(tx), FROZEN, batch, KEY)
        results.append(copied(step(state, FROZEN, batch, KEY)))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), results[0], other)
    keys = row_keys(jax.random.fold_in(KEY, 1), 4)
    losses = [
        noisy({**FROZEN, "w": jnp.zeros(2)}, {"x": batch["x"][:1]}, keys[i : i + 1])[0]
        for i in range(4)
    ]
    assert len({float(loss) for loss in losses}) == 4


def test_a_batch_that_does_not_split_is_refused(batch):
    tx = optax.sgd(0.1)
    step = make_train_step(quadratic, tx, ema_decay=0.9, accumulate=3)
    with pytest.raises(ValueError, match="a batch of 4 cannot be split into 3 equal parts"):
        step(start(tx), FROZEN, batch, KEY)


def test_a_gradient_that_is_not_finite_is_skipped_even_if_the_loss_is(batch):
    """The root of a square at zero: itself zero, its gradient infinite times zero."""

    def rooted(params, batch, key):
        return jnp.sum(jnp.sqrt(jnp.square(params["w"]))), {}

    tx = optax.adam(1e-2)
    state = init_state({"w": jnp.array([1.0, 0.0])}, tx)
    before = copied(state)
    state, metrics = make_train_step(rooted, tx, ema_decay=0.9)(state, FROZEN, batch, KEY)
    assert float(metrics["loss"]) == 1.0 and not np.isfinite(metrics["grad_norm"])
    for name in ("trainable", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(before, name))
    assert (int(state.step), int(state.skipped)) == (1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_step_that_is_not_finite_leaves_the_state_as_it_was(batch, bad):
    tx = optax.adam(1e-2)
    step = make_train_step(quadratic, tx, ema_decay=0.9)
    state, _ = step(start(tx), FROZEN, batch, KEY)
    before = copied(state)
    state, metrics = step(state, FROZEN, {"x": batch["x"].at[0, 0].set(bad)}, KEY)
    assert not np.isfinite(metrics["loss"])
    for name in ("trainable", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(before, name))
    assert (int(state.step), int(state.skipped)) == (2, 1)
    state, metrics = step(state, FROZEN, batch, KEY)
    assert np.isfinite(metrics["loss"]) and int(state.skipped) == 1
