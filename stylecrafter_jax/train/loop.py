"""A training run from start to end: build, restore, iterate, log, sample, save."""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from stylecrafter_jax.checkpoints.store import Store
from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.config_json import to_dict
from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.foreign import reason
from stylecrafter_jax.params import Params
from stylecrafter_jax.processes import (
    ElsewhereError,
    by_leader,
    leads,
    lost_another,
    several,
    together,
    told,
)
from stylecrafter_jax.programs import out_of_memory
from stylecrafter_jax.sharding import (
    on_mesh,
    on_one_device,
    put_weights,
)
from stylecrafter_jax.signals import stop_signals
from stylecrafter_jax.train.experiment import Experiment
from stylecrafter_jax.train.feed import Feed, own_ledger
from stylecrafter_jax.train.instruments import WATCHED, Instruments, open_instruments
from stylecrafter_jax.train.means import Means, labels
from stylecrafter_jax.train.metrics_log import MetricsLog
from stylecrafter_jax.train.objective import are_pictures, rows_of
from stylecrafter_jax.train.optimizer import learning_rate
from stylecrafter_jax.train.profiling import Span
from stylecrafter_jax.train.runs import CHECKPOINTS, REFUSED, claim, is_run
from stylecrafter_jax.train.samples import SAMPLES, Sampler
from stylecrafter_jax.train.setup import Parts, prepare
from stylecrafter_jax.train.spikes import Spikes
from stylecrafter_jax.train.step import (
    FAILED,
    STOP,
    Batch,
    Metrics,
    TrainState,
    put_state,
    state_like,
)
from stylecrafter_jax.train.throughput import Work, step_flops, work
from stylecrafter_jax.train.wandb_log import WandbLog
from stylecrafter_jax.train.watch import TrainingError, Watch

NOTICE = "finishing this step and saving; once more to end at once"


class Outcome(NamedTuple):
    """How a run ended: after how many steps, and whether these were all."""

    step: int
    finished: bool


def train(
    experiment: Experiment,
    run: Path,
    *,
    progress: bool = True,
    profile: Span | None = None,
    wandb: str | None = None,
) -> Outcome:
    """Trains until the last step, or until SIGTERM or Ctrl-C; goes on where the folder's run is.

    After a signal the step under way is finished and saved; a second one ends the process at once.
    The state after any step depends on the experiment alone, not on how often it was stopped.

    Several processes, connected by `processes.start`, all call it with the same arguments and the
    same folder. A signal to one of them stops all after the same step, and so does an error of one.

    Args:
        experiment: what to do.
        run: the run's folder; see `runs`. The first process alone writes there, checkpoints apart.
        progress: show a line with the estimated time left on standard error.
        profile: steps of this process, the first one of several, to profile into `RUN/profile`.
        wandb: a project of Weights & Biases to send the metrics to.

    Raises:
        ConfigError, CheckpointError, DataError: the config, the bundle or the data cannot be used.
        ElsewhereError: another process had an error; its message is here.
        TrainingError: too many updates in a row were not finite. Earlier checkpoints are intact.
        OSError: the metrics cannot be written; the state is saved if a checkpoint can be.
    """
    settings = experiment.train
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_signals(NOTICE))
        parts = together(functools.partial(prepare, experiment, run, stack))
        parts.check_alike(experiment)
        by_leader(lambda: claim(run, experiment, parts.start.manifest))
        together(lambda: _check_shared(run))
        store = Store(run / CHECKPOINTS, keep_last=settings.keep_last, keep_best=settings.keep_best)
        stack.callback(lambda: leads() and store.sweep())
        stack.callback(store.close)
        by_leader(store.sweep)
        mesh, tx = parts.mesh, parts.tx
        means, spikes = Means(labels(parts.start.config)), Spikes(settings.spike_deviations)
        if store.latest() is None:
            state = put_state(parts.start.trainable, tx, mesh)
        else:
            restored = store.restore(state_like(parts.start.trainable, tx, mesh))
            state = restored.state
            watched = restored.data.pop(WATCHED, {})
            means.set_state(watched.get("means", {}))
            spikes.set_state(watched.get("spikes", {}))
            parts.ahead.set_state(own_ledger(restored.data))
        done = int(state.step)
        feed = Feed(parts.ahead, mesh, done)
        # After the prefetched batches were given back, the ledger is that of the trained ones.
        stack.callback(lambda: leads() and feed.ledger.write(run / REFUSED))
        stack.enter_context(parts.ahead)
        mirror = by_leader(lambda: None if wandb is None else _mirror(wandb, run, experiment))
        patient = settings.on_save_error == "continue"
        log = MetricsLog(run, done, mirror, patient=patient) if leads() else None
        if log is not None:
            stack.callback(log.close)
        tools = open_instruments(
            stack,
            run,
            done=done,
            total=settings.steps,
            mesh=mesh,
            means=means,
            spikes=spikes,
            progress=progress,
            profile=profile,
        )
        frozen = put_weights(parts.start.frozen, mesh, experiment.mesh.frozen_layout)
        parts = parts.without_weights()
        loop = _Loop(experiment, parts, frozen, feed, store, log, tools, {})
        with _saying_what_is_too_large():
            done = loop.iterate(state, done, stop)
        tools.history.end(done >= settings.steps)
    refused = feed.ledger.summary()
    if refused and leads():
        print(f"{refused}; see {run / REFUSED}", file=sys.stderr)
    return Outcome(done, done >= settings.steps)


@contextlib.contextmanager
def _saying_what_is_too_large() -> Iterator[None]:
    """Turns what JAX raises where a step does not fit into one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        raise TrainingError(
            "the devices' memory is too small for a step; try a smaller data.image_batch or "
            "data.video_batch, a larger train.accumulate, train.remat=full or a larger mesh.fsdp: "
            "`stylecrafter plan` says what fits"
        ) from error


def _mirror(project: str, run: Path, experiment: Experiment) -> WandbLog:
    return WandbLog(project, run, to_dict(experiment))


def _check_shared(run: Path) -> None:
    """Refuses a run's folder that the first process has and this one has not."""
    if not is_run(run):
        raise ConfigError(f"{run} is not the folder that process 0 has; all hosts must share it")


class _Loop(NamedTuple):
    """What the iteration needs beside the state; see `train`.

    `works` has, for pictures and for videos, what a step does once one was compiled.
    """

    experiment: Experiment
    parts: Parts
    frozen: Params
    feed: Feed
    store: Store
    log: MetricsLog | None
    tools: Instruments
    works: dict[bool, Work]

    def iterate(self, state: TrainState, done: int, stop: threading.Event) -> int:
        """Returns the number of steps done at the end, whose state is saved."""
        settings, tools, sampler = self.experiment.train, self.tools, self.parts.sampler
        watch = Watch(self.log, tools.means, tools.spikes, self.feed, settings.max_skipped)
        key, saved = jax.random.key(settings.seed), done
        if sampler and told(lambda: sampler.lacking(done)):
            self._sample(sampler, done, state, watch)
        verdict = self.feed.verdict(watch.halt, stop.is_set())
        while done < settings.steps:
            with tools.profiler.step():
                try:
                    with tools.meter.time("data"):
                        drawn = self.feed.next(stop.is_set())
                except (DataError, OSError, ElsewhereError):
                    watch.settle()
                    self._save(int(state.step), state, watch, saved, last=True)
                    raise
                if drawn is None:
                    break
                state, metrics = self._step(state, drawn[0], key)
            tools.profiler.end(metrics)
            tools.meter.look(self.store.writing())
            tools.history.step = done = done + 1
            watch.add(done, metrics, drawn[1])
            # A checkpoint that is due at a step that was skipped waits for the next healthy one.
            due = done // settings.save_every > saved // settings.save_every
            sampling = sampler is not None and sampler.due(done)
            logging = done % settings.log_every == 0
            if due or sampling or logging or done == settings.steps:
                watch.settle()
            verdict = self.feed.verdict(watch.halt, stop.is_set())
            if verdict == STOP:
                watch.settle()  # this step may have failed, which goes before
                verdict = self.feed.verdict(watch.halt, True)
            if verdict == FAILED:
                break
            last = verdict == STOP or done == settings.steps
            values = self._write(done, watch) if last or logging else None
            if logging:
                tools.means.clear()
            if last or due:
                saved = self._save(done, state, watch, saved, last=last)
            if sampler and sampling and verdict != STOP:
                self._sample(sampler, done, state, watch)
            tools.console.update(done, values)
            if verdict == STOP:
                break
        # What one of several processes alone met at the last step came after that was saved.
        if verdict == FAILED or (self.feed.error is not None and not several()):
            done = int(state.step)  # the steps since were taken by no process
            self._save(done, state, watch, saved, last=True)
        together(self.store.wait)
        self.feed.check()
        return done

    def _step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Returns the next state and the metrics; compiles at the first batch of a kind."""
        pictures, meter = are_pictures(batch), self.tools.meter
        step, new = self.parts.step_of(batch), pictures not in self.works
        with on_mesh(self.parts.mesh):  # of the step alone: samples are made on one device
            with meter.time("compile") if new else contextlib.nullcontext():
                if new:
                    flops = step_flops(step, state, self.frozen, batch, key)
                    self.works[pictures] = work(rows_of(batch), pictures, flops)
                result = step(state, self.frozen, batch, key)
        meter.add(self.works[pictures])
        return result

    def _write(self, done: int, watch: Watch) -> dict[str, float]:
        """Writes the metrics of a step and returns them; what cannot be written ends the run."""
        values = {**watch.values(), **self.tools.measured()}
        rate = learning_rate(self.experiment.optimizer, self.experiment.train.steps)
        values["learning_rate"] = np.asarray(rate(done - 1 - int(values["skipped"]))).item()
        if self.log is not None:
            try:
                self.log.write(done, values)
            except Exception as error:  # of a full disk, of what the metrics are sent to
                self.feed.fail(error)
        return values

    def _save(self, done: int, state: TrainState, watch: Watch, saved: int, *, last: bool) -> int:
        """Begins to save a healthy state; returns the step of the newest save, even if it failed.

        Args:
            done: steps done, those of `state`.
            state: the state.
            watch: what was seen of the steps.
            saved: the step of the newest save before.
            last: the run ends after it, so that it must succeed.
        """
        watch.settle()
        if watch.unhealthy or (done == saved and not (last and self._failed(done))):
            return saved
        data = {**self.feed.state(done), WATCHED: self.tools.get_state()}
        loss = watch.mean_loss()
        with self.tools.meter.time("save"):
            self._try(self.store.wait, must=False)
            self._try(lambda: self.store.save(done, state, data, loss), must=last)
        return done

    def _failed(self, done: int) -> bool:
        """Returns whether the save after a step, where there was one, is not on disk in the end."""
        self._try(self.store.wait, must=False)
        return done > 0 and done not in self.store.steps()

    def _try(self, write: Callable[[], None], *, must: bool) -> None:
        """Writes on all processes; goes on without a checkpoint only if that is wanted."""
        try:
            together(write)
        except (CheckpointError, ElsewhereError) as error:
            by_leader(self.store.sweep)
            if must or self.experiment.train.on_save_error == "stop":
                raise
            if leads():
                tqdm.write(f"{error}; going on", file=sys.stderr)
            with contextlib.suppress(OSError):
                self.tools.history.note("not_saved", reason=str(error))

    def _sample(self, sampler: Sampler, done: int, state: TrainState, watch: Watch) -> None:
        """Writes samples; a full disk, full memory or overflow there is no reason to end a run."""
        watch.settle()
        with self.tools.meter.time("samples"):
            weights = state.ema if self.experiment.samples.use_ema else state.trainable
            try:
                weights = together(lambda: on_one_device({**self.frozen, **weights}))
                if self.log is None:
                    return
                grid = sampler(done, weights)
                self.log.write_image(done, SAMPLES, grid)
            except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
                if lost_another(error):
                    raise
                why = reason(error)
                if leads():
                    tqdm.write(f"step {done}: no samples: {why}", file=sys.stderr)
                with contextlib.suppress(OSError):
                    self.tools.history.note("no_samples", reason=why)
