"""A training step: a pure function from a state and a batch to the next state and metrics."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key

from stylecrafter_jax.params import Params
from stylecrafter_jax.sharding import placed, put_weights, stay

# Where several processes train, a row of their batch for each group of devices: whether the process
# goes on, wants to stop, or failed and has no batch.
HALT = "halt"
GO, STOP, FAILED = range(3)

Batch = dict[str, Array]
# A number, or sums and counts of parts of the batch in rows (n, 2); see `means`.
Metrics = dict[str, Array]
# (all parameters, batch, a key of each row) -> (loss, metrics)
Loss = Callable[[Params, Batch, Key[Array, " b"]], tuple[Array, Metrics]]


class TrainState(NamedTuple):
    """What a run carries from step to step; frozen weights are not part of it.

    Attributes:
        step: batches seen, those whose update was skipped included.
        skipped: updates skipped because the loss or a gradient was not finite.
        trainable: the weights that train, float32.
        ema: their moving average.
        opt_state: the optimizer's.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    trainable: Params
    ema: Params
    opt_state: Any


def init_state(trainable: Params, tx: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step; it shares no buffer, since steps donate it."""

    def copy():
        return {name: jnp.array(value, jnp.float32) for name, value in trainable.items()}

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        trainable=copy(),
        ema=copy(),
        opt_state=tx.init(copy()),
    )


def state_like(trainable: Params, tx: optax.GradientTransformation, mesh: Mesh | None) -> Any:
    """Returns the state before the first step as abstract arrays that lie on a mesh."""
    state = jax.eval_shape(lambda params: init_state(params, tx), trainable)
    return placed(state, "weights", mesh)


def put_state(trainable: Params, tx: optax.GradientTransformation, mesh: Mesh | None) -> TrainState:
    """Returns the state before the first step on a mesh, each part made where it lies.

    It lies as `put_weights` would put it, and no device ever has more of it than its part: of the
    trainable weights, which may be in host memory, that part once more for as long as this takes.
    """
    there = jax.tree.map(lambda x: x.sharding, state_like(trainable, tx, mesh))
    make = jax.jit(lambda params: init_state(params, tx), out_shardings=there)
    return make(put_weights(trainable, mesh))


def make_train_step(
    loss: Loss, tx: optax.GradientTransformation, *, ema_decay: float, accumulate: int = 1
) -> Callable[[TrainState, Params, Batch, Array], tuple[TrainState, Metrics]]:
    """Returns a jitted `(state, frozen, batch, key) -> (state, metrics)`; `state` is donated.

    Under `jax.set_mesh` the state leaves it as `sharding.put_weights` lays it.

    A step whose loss or gradient is not finite leaves weights, average and optimizer as they were
    and counts in `skipped`. The key of row r in step i is `fold_in(fold_in(key, i), r)`, so that a
    row's random numbers depend on neither the other rows nor how the batch is split. If `HALT` is
    in the batch, its largest entry is among the metrics, and if that is `FAILED`, the state stays
    as it was.

    Args:
        loss: of all parameters, trainable and frozen; only the trainable get a gradient.
        tx: the optimizer.
        ema_decay: share of the old average that is kept at each step.
        accumulate: parts that the batch is split into, one after another, to save memory; the
            gradient is the mean of theirs.
    """

    def objective(trainable, frozen, batch, keys):
        return loss({**frozen, **trainable}, batch, keys)

    gradient = jax.value_and_grad(objective, has_aux=True)

    @functools.partial(jax.jit, donate_argnames="state")
    def train_step(state: TrainState, frozen: Params, batch: Batch, key: Key[Array, ""]):
        said = {HALT: jnp.max(batch[HALT])} if HALT in batch else {}
        here = said[HALT] < FAILED if said else jnp.bool_(True)
        batch = {name: x for name, x in batch.items() if name != HALT}
        keys = row_keys(jax.random.fold_in(key, state.step), len(next(iter(batch.values()))))
        if accumulate == 1:
            (value, metrics), grads = gradient(state.trainable, frozen, batch, keys)
        else:
            value, metrics, grads = _accumulated(
                gradient, state.trainable, frozen, batch, keys, accumulate
            )
        norm = optax.tree.norm(grads)
        healthy = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        ema = optax.incremental_update(trainable, state.ema, 1.0 - ema_decay)
        applied = healthy & here
        new = TrainState(
            step=state.step + here,
            skipped=state.skipped + (here & ~healthy),
            trainable=_where(applied, trainable, state.trainable),
            ema=_where(applied, ema, state.ema),
            opt_state=_where(applied, opt_state, state.opt_state),
        )
        new = stay(new, "weights")
        measured = {"loss": value, "grad_norm": norm, "skipped": new.skipped}
        return new, stay({**measured, **said, **metrics}, "whole")

    return train_step


def row_keys(key: Key[Array, ""], rows: int) -> Key[Array, " rows"]:
    """Returns a key of each row of a batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def _accumulated(gradient, trainable, frozen, batch, keys, parts: int):
    """Returns loss, metrics and gradient as means over `parts` slices of the batch."""

    def split(x):
        if x.shape[0] % parts:
            raise ValueError(f"a batch of {x.shape[0]} cannot be split into {parts} equal parts")
        # Part i takes every so-manieth row from i, so that rows stay on the devices they lie on.
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def body(total, part):
        (value, metrics), grads = gradient(trainable, frozen, *part)
        return jax.tree.map(jnp.add, total, (value, metrics, grads)), None

    slices = jax.tree.map(split, (batch, keys))
    first = jax.tree.map(lambda x: x[0], slices)
    (value, metrics), grads = jax.eval_shape(gradient, trainable, frozen, *first)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (value, metrics, grads))
    total, _ = jax.lax.scan(body, zero, slices)
    return jax.tree.map(lambda x: x / parts, total)


def _where(ok: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)
