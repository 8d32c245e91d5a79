"""One step of a run done again, to see which of its records and weights make a loss what it is.

Nothing of the run changes: its state comes from the newest checkpoint before the step, its batches
from seed and step, and what is found goes to `RUN/replay`.
"""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from stylecrafter_jax.checkpoints.store import Store
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.files import write_json
from stylecrafter_jax.media.video import contact_sheet, write_frames
from stylecrafter_jax.params import Params
from stylecrafter_jax.processes import by_leader, together
from stylecrafter_jax.sharding import on_mesh, put_weights, stay
from stylecrafter_jax.train import setup
from stylecrafter_jax.train.experiment import Experiment, SampleConfig
from stylecrafter_jax.train.feed import Feed, own_ledger
from stylecrafter_jax.train.means import LOSS_T, labels
from stylecrafter_jax.train.metrics_log import SKIPPED, SPIKES, read_metrics
from stylecrafter_jax.train.objective import are_pictures, rows_of
from stylecrafter_jax.train.runs import CHECKPOINTS, check_same
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.start import Start
from stylecrafter_jax.train.step import (
    HALT,
    Batch,
    Loss,
    Metrics,
    TrainState,
    put_state,
    row_keys,
    state_like,
)

REPLAY = "replay"
LARGEST = 20  # weights listed by their gradient
COLUMNS = 8  # of the sheet of a batch


class Row(NamedTuple):
    """A record of the batch.

    Attributes:
        record: its id.
        index: its number in the source.
        loss: of this row alone; the batch's is the mean of them.
        grad_norm: of this row's loss.
        timesteps: the part of the schedule that its timestep lies in; None where there is none.
    """

    record: str
    index: int
    loss: float
    grad_norm: float
    timesteps: str | None


class Replayed(NamedTuple):
    """A step done again.

    Attributes:
        step: its number, from 1.
        start: the step of the checkpoint that it was reached from; 0 is the run's beginning.
        loss, grad_norm: of the batch.
        logged: the loss that the run wrote for it; None if it wrote none.
        source: of the batch.
        rows: by their loss, the largest first; none for a loss that is not a mean of rows.
        gradients: the weights of the largest gradients, and their norms.
    """

    step: int
    start: int
    loss: float
    grad_norm: float
    logged: float | None
    source: str
    rows: list[Row]
    gradients: dict[str, float]

    def lines(self) -> list[str]:
        """Returns what to print."""
        logged = "" if self.logged is None else f", logged as {self.logged:.9g}"
        return [
            f"step {self.step}, from step {self.start}: loss {self.loss:.9g}{logged}; "
            f"gradient {self.grad_norm:.4g}; of {self.source}",
            *(
                f"  loss {row.loss:<10.4g} gradient {row.grad_norm:<10.4g} "
                f"timestep {row.timesteps or '-':<8} {row.record}"
                for row in self.rows
            ),
            *(f"  gradient {norm:<10.4g} {name}" for name, norm in self.gradients.items()),
        ]


def replay(experiment: Experiment, run: Path, step: int) -> Replayed:
    """Does a step of a run again, and looks at each row of its batch alone.

    Several processes call it together, as `loop.train`.

    Args:
        experiment: the run's.
        run: its folder; the first process writes `replay/step_000012.json` and, where the batch
            holds pixels, a sheet of its first frames beside it.
        step: which one, from 1.

    Raises:
        ConfigError: the folder is no run of this experiment, or the run has no such step.
        CheckpointError, DataError, ElsewhereError: as of `loop.train`.
    """
    if not 1 <= step <= experiment.train.steps:
        raise ConfigError(
            f"--replay: wanted a step from 1 to {experiment.train.steps} (train.steps), got {step}"
        )
    experiment = dataclasses.replace(experiment, samples=SampleConfig())
    with contextlib.ExitStack() as stack:
        parts = together(functools.partial(setup.prepare, experiment, run, stack))
        parts.check_alike(experiment)
        together(lambda: check_same(run, experiment, parts.start.manifest))
        state = _state_before(run, step, parts)
        start = int(state.step)
        feed = Feed(parts.ahead, parts.mesh, start)
        stack.enter_context(parts.ahead)
        frozen = put_weights(parts.start.frozen, parts.mesh, experiment.mesh.frozen_layout)
        parts = parts.without_weights()
        key = jax.random.key(experiment.train.seed)
        index, metrics, looked = np.zeros(0, np.int64), {}, None
        batch: Batch = {}
        for number in range(start + 1, step + 1):
            drawn = feed.next(False)
            if drawn is None:
                break  # why is raised below
            batch, index = drawn
            with on_mesh(parts.mesh):
                if number == step:
                    looked = _look(experiment, parts.start, state, frozen, batch, key)
                state, metrics = parts.step_of(batch)(state, frozen, batch, key)
        feed.check()
        found = _found(run, step, start, feed.names(step, index), metrics, looked)
        by_leader(lambda: _write(run, found, batch))
    return found


class _Looked(NamedTuple):
    """What the rows of a batch are by themselves, and the mean of their gradients."""

    losses: Float[np.ndarray, " b"]
    grad_norms: Float[np.ndarray, " b"]
    timesteps: list[str | None]
    gradients: dict[str, float]


def _state_before(run: Path, step: int, parts: setup.Parts) -> TrainState:
    """Returns the newest state before a step, and puts the batches where it stands."""
    trainable, tx, mesh = parts.start.trainable, parts.tx, parts.mesh
    if not (run / CHECKPOINTS).is_dir():
        return put_state(trainable, tx, mesh)
    store = Store(run / CHECKPOINTS)
    try:
        before = [number for number in store.steps() if number < step]
        if not before:
            return put_state(trainable, tx, mesh)
        restored = store.restore(state_like(trainable, tx, mesh), before[-1])
    finally:
        store.close()
    parts.ahead.set_state(own_ledger(restored.data))
    return restored.state


def _look(
    experiment: Experiment,
    start: Start,
    state: TrainState,
    frozen: Params,
    batch: Batch,
    key: Key[Array, ""],
) -> _Looked | None:
    """Returns what each row of a batch does by itself; None where a row has no loss of its own."""
    stage = STAGES[experiment.stage]
    if stage.goal == "contrast":
        return None
    mode = stage.image_mode if are_pictures(batch) else stage.video_mode
    assert mode is not None, "an experiment has no source that its stage cannot use"
    batch = {name: x for name, x in batch.items() if name != HALT}
    keys = row_keys(jax.random.fold_in(key, state.step), rows_of(batch))
    loss = setup.build_loss(experiment, start, mode)
    losses, norms, counts, gradients = jax.tree.map(
        np.asarray, _by_row(loss, state.trainable, frozen, batch, keys)
    )
    names = labels(start.config)[LOSS_T]
    timesteps: list[str | None] = [None] * len(losses)
    if counts is not None:
        timesteps = [names[int(np.argmax(row))] for row in counts]
    largest = sorted(gradients, key=lambda name: -np.nan_to_num(gradients[name], nan=np.inf))
    return _Looked(
        losses, norms, timesteps, {name: float(gradients[name]) for name in largest[:LARGEST]}
    )


@functools.partial(jax.jit, static_argnames="loss")
def _by_row(loss: Loss, trainable: Params, frozen: Params, batch: Batch, keys: Array) -> Any:
    """Returns losses, norms of gradients and timesteps of rows, and norms of the mean gradient."""

    def value(trainable, row):
        return loss({**frozen, **trainable}, *jax.tree.map(lambda x: x[None], row))

    def body(total, row):
        (loss, metrics), gradient = jax.value_and_grad(value, has_aux=True)(trainable, row)
        counts = metrics[LOSS_T][:, 1] if LOSS_T in metrics else None
        return jax.tree.map(jnp.add, total, gradient), (loss, optax.tree.norm(gradient), counts)

    total, (losses, norms, counts) = jax.lax.scan(
        body, jax.tree.map(jnp.zeros_like, trainable), (batch, keys)
    )
    mean = {name: jnp.linalg.norm(jnp.ravel(x)) / len(losses) for name, x in total.items()}
    return stay((losses, norms, counts, mean), "whole")


def _found(
    run: Path,
    step: int,
    start: int,
    names: dict[str, Any],
    metrics: Metrics,
    looked: _Looked | None,
) -> Replayed:
    """Returns a step done again, beside what the run wrote of it.

    Raises:
        ConfigError: the run noted other records for it.
    """
    for name in (SKIPPED, SPIKES):
        for row in read_metrics(run, name):
            if row["step"] == step and row.get("records", names["records"]) != names["records"]:
                raise ConfigError(
                    f"the data of {run} are not those it trained on: step {step} had "
                    f"{row['records'][:3]}..., now has {names['records'][:3]}..."
                )
    logged = next((row.get("loss") for row in read_metrics(run) if row["step"] == step), None)
    rows, gradients = [], {}
    if looked is not None:
        gradients = looked.gradients
        columns = (names["records"], names["index"], looked.losses, looked.grad_norms)
        rows = [
            Row(record, index, float(loss), float(norm), timesteps)
            for record, index, loss, norm, timesteps in zip(*columns, looked.timesteps, strict=True)
        ]
        rows.sort(key=lambda row: -np.nan_to_num(row.loss, nan=np.inf))
    loss, norm = (float(metrics[name]) for name in ("loss", "grad_norm"))
    return Replayed(step, start, loss, norm, logged, names["source"], rows, gradients)


def _write(run: Path, found: Replayed, batch: Batch) -> None:
    folder = run / REPLAY
    folder.mkdir(exist_ok=True)
    content = {**found._asdict(), "rows": [row._asdict() for row in found.rows]}
    path = folder / f"step_{found.step:06d}.json"
    write_json(path, content)
    if "pixels" not in batch:
        return
    held = [shard.data for shard in batch["pixels"].addressable_shards if shard.replica_id == 0]
    first = np.concatenate([np.asarray(x)[:, 0] for x in held])
    write_frames(contact_sheet(first, COLUMNS)[None], path.with_suffix(".png"), fps=1)
