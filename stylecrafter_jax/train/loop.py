"""A training run from start to end: build, restore, iterate, log, sample, save."""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from stylecrafter_jax.checkpoints.store import Store
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.data.device import DeviceBatches
from stylecrafter_jax.data.pipeline import make_batches
from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.models.unet_video import Mode
from stylecrafter_jax.params import Params
from stylecrafter_jax.sharding import batch_sharding, on_mesh, on_one_device, put_weights, run_mesh
from stylecrafter_jax.train.experiment import Experiment
from stylecrafter_jax.train.feature_fit import check_features
from stylecrafter_jax.train.goals import make_loss
from stylecrafter_jax.train.metrics_log import MetricsLog
from stylecrafter_jax.train.objective import are_pictures
from stylecrafter_jax.train.optimizer import learning_rate, make_optimizer
from stylecrafter_jax.train.runs import CHECKPOINTS, claim
from stylecrafter_jax.train.samples import SAMPLES, Sampler, make_sampler
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.start import Start, load_start
from stylecrafter_jax.train.step import TrainState, init_state, make_train_step
from stylecrafter_jax.train.streams import check_size, make_streams

REFUSED = "refused.jsonl"
Step = Callable[[TrainState, Params, dict[str, Any], jax.Array], tuple[TrainState, Any]]


class TrainingError(ValueError):
    """A run cannot go on; the message is one line that says why."""


class Outcome(NamedTuple):
    """How a run ended: after how many steps, and whether these were all."""

    step: int
    finished: bool


def train(experiment: Experiment, run: Path, *, progress: bool = True) -> Outcome:
    """Trains until the last step, or until SIGTERM or Ctrl-C; goes on where the folder's run is.

    After a signal the step under way is finished and saved; a second one ends the process at once.
    The state after any step depends on the experiment alone, not on how often it was stopped.

    Args:
        experiment: what to do.
        run: the run's folder; see `runs`.
        progress: show a bar with the estimated time left on standard error.

    Raises:
        ConfigError, CheckpointError, DataError: the config, the bundle or the data cannot be used.
        TrainingError: too many updates in a row were not finite. Earlier checkpoints are intact.
        OSError: the metrics cannot be written; the state is saved if a checkpoint can be.
    """
    stage, settings, data = STAGES[experiment.stage], experiment.train, experiment.data
    frozen_dtype = jnp.dtype(settings.frozen_dtype)
    start = load_start(
        Path(experiment.bundle),
        stage,
        frozen_dtype=frozen_dtype,
        seed=settings.seed,
        encoders=not check_features(experiment),
    )
    check_size(data, start.config)
    mesh = _mesh(experiment)
    batches = make_batches(
        make_streams(data, start.tokenizer, styled=stage.styled),
        seed=settings.seed,
        workers=data.workers,
        threads=data.threads,
        max_bad_rate=data.max_bad_rate,
    )
    sampler = make_sampler(experiment, start, run)
    claim(run, experiment, start.manifest)
    tx = make_optimizer(experiment.optimizer, settings.steps)
    picture_step, video_step = (
        None if mode is None else build_step(experiment, start, tx, mode)
        for mode in (stage.image_mode, stage.video_mode)
    )
    state = put_weights(init_state(start.trainable, tx), mesh)
    frozen = put_weights(start.frozen, mesh)
    with contextlib.ExitStack() as stack:
        store = Store(run / CHECKPOINTS, keep_last=settings.keep_last, keep_best=settings.keep_best)
        stack.callback(store.close)
        # After the prefetched batches were given back, the ledger is that of the trained ones.
        stack.callback(lambda: batches.ledger.write(run / REFUSED))
        rows = None if mesh is None else batch_sharding(mesh)
        ahead = stack.enter_context(DeviceBatches(batches, rows))
        if store.latest() is not None:
            restored = store.restore(state)
            state = restored.state
            ahead.set_state(restored.data)
        done = int(state.step)
        log = MetricsLog(run, done)
        stack.callback(log.close)
        stop = stack.enter_context(stop_signals())
        bar = stack.enter_context(
            tqdm(total=settings.steps, initial=done, unit="step", disable=not progress)
        )
        loop = _Loop(
            experiment, mesh, frozen, picture_step, video_step, sampler, ahead, store, log, bar
        )
        done = loop.iterate(state, done, stop)
    refused = batches.ledger.summary()
    if refused:
        print(f"{refused}; see {run / REFUSED}", file=sys.stderr)
    return Outcome(done, done >= settings.steps)


def _mesh(experiment: Experiment) -> Mesh | None:
    """Returns the devices of a run; None where it is one.

    Raises:
        ConfigError: there are fewer than it wants, or its batches cannot be split over them.
    """
    wanted, data, parts = experiment.mesh, experiment.data, experiment.train.accumulate
    batches = [(data.images, data.image_batch), (data.videos, data.video_batch)]
    rows = math.gcd(*(batch // parts for source, batch in batches if source))
    try:
        mesh = run_mesh(wanted.data, wanted.fsdp, rows=rows)
    except ValueError as error:
        raise ConfigError(f"mesh: {error}") from error
    return None if mesh.size == 1 else mesh


def build_step(
    experiment: Experiment, start: Start, tx: optax.GradientTransformation, mode: Mode
) -> Step:
    """Returns the jitted step of an experiment for batches that the UNet sees in `mode`."""
    settings = experiment.train
    loss = make_loss(experiment, start.config, mode, end=start.tokenizer.end)
    return make_train_step(loss, tx, ema_decay=settings.ema_decay, accumulate=settings.accumulate)


class _Loop(NamedTuple):
    """What the iteration needs beside the state; see `train`."""

    experiment: Experiment
    mesh: Mesh | None
    frozen: Params
    picture_step: Step | None
    video_step: Step | None
    sampler: Sampler | None
    batches: DeviceBatches
    store: Store
    log: MetricsLog
    bar: tqdm

    def iterate(self, state: TrainState, done: int, stop: threading.Event) -> int:
        """Returns the number of steps done at the end, whose state is saved."""
        settings = self.experiment.train
        watch = _Watch(self.log, settings.max_skipped, done)
        key, saved = jax.random.key(settings.seed), done
        rate = learning_rate(self.experiment.optimizer, settings.steps)
        while done < settings.steps:
            try:
                batch = next(self.batches)
            except DataError:
                self._save(done, state, watch, saved)
                raise
            index = batch.pop("index")
            step = self.picture_step if are_pictures(batch) else self.video_step
            assert step is not None, "the experiment allows only sources that its stage can use"
            with on_mesh(self.mesh):  # of the step alone: samples are made on one device
                state, metrics = step(state, self.frozen, batch, key)
            done += 1
            watch.add(done, metrics, index)
            stopped = stop.is_set()
            last = stopped or done == settings.steps
            if last or done % settings.log_every == 0:
                values = watch.values()
                values["learning_rate"] = np.asarray(rate(done - 1 - int(values["skipped"]))).item()
                try:
                    self.log.write(done, values)
                except OSError:
                    self._save(done, state, watch, saved)
                    raise
                self.bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            # A checkpoint that is due at a step that was skipped waits for the next healthy one.
            if last or done // settings.save_every > saved // settings.save_every:
                saved = self._save(done, state, watch, saved)
            if self.sampler and done % self.sampler.every == 0 and not stopped:
                self._sample(self.sampler, done, state, watch)
            self.bar.update()
            if stopped:
                break
        self.store.wait()
        return done

    def _save(self, done: int, state: TrainState, watch: "_Watch", saved: int) -> int:
        """Begins to save a healthy state; returns the step of the newest checkpoint."""
        watch.settle()
        if watch.unhealthy or done == saved:
            return saved
        self.store.save(done, state, self.batches.get_state(), watch.mean_loss())
        return done

    def _sample(self, sampler: Sampler, done: int, state: TrainState, watch: "_Watch") -> None:
        """Writes samples; a full disk, full memory or overflow there is no reason to end a run."""
        watch.settle()
        begun = time.perf_counter()
        weights = state.ema if self.experiment.samples.use_ema else state.trainable
        try:
            grid = sampler(done, on_one_device({**self.frozen, **weights}))
            self.log.write_image(done, SAMPLES, grid)
        except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
            reason = str(error).splitlines()[0]
            tqdm.write(f"step {done}: no samples: {reason}", file=sys.stderr)
        watch.leave_out(time.perf_counter() - begun)


class _Watch:
    """Looks at each step's metrics, one step late so that the device never waits for the host.

    Attributes:
        unhealthy: updates skipped in a row, up to the last step looked at.
    """

    def __init__(self, log: MetricsLog, max_skipped: int, done: int):
        self.unhealthy = 0
        self._log, self._max_skipped = log, max_skipped
        self._waiting: tuple[int, Any, np.ndarray] | None = None
        self._values: dict[str, float] = {}
        self._losses: list[float] = []
        self._since = (time.perf_counter(), done)
        self._last = done

    def add(self, step: int, metrics: Any, index: np.ndarray) -> None:
        """Takes a step's metrics, still being computed, and looks at those of the step before."""
        self.settle()
        self._waiting = (step, metrics, index)

    def settle(self) -> None:
        """Waits for the metrics taken last.

        Raises:
            TrainingError: too many steps in a row were skipped.
        """
        if self._waiting is None:
            return
        (step, metrics, index), self._waiting = self._waiting, None
        self._last = step
        self._values = {name: np.asarray(value).item() for name, value in metrics.items()}
        loss = self._values["loss"]
        if math.isfinite(loss) and math.isfinite(self._values["grad_norm"]):
            self.unhealthy = 0
            self._losses.append(loss)
            return
        self.unhealthy += 1
        records = np.ravel(index).tolist()
        self._log.write_skipped(step, loss, records)
        tqdm.write(f"step {step} skipped: loss {loss}, records {records}", file=sys.stderr)
        if self.unhealthy >= self._max_skipped:
            raise TrainingError(
                f"the loss was not finite in {self.unhealthy} steps in a row, the last is {step}; "
                "earlier checkpoints are intact; try a lower optimizer.learning_rate"
            )

    def values(self) -> dict[str, float]:
        """Returns the metrics of the last step, and the seconds per step since the last call."""
        self.settle()
        now = time.perf_counter()
        (before, step), self._since = self._since, (now, self._last)
        return {**self._values, "seconds": (now - before) / max(1, self._last - step)}

    def leave_out(self, seconds: float) -> None:
        """Does not count time that was spent on something else than steps."""
        begun, step = self._since
        self._since = (begun + seconds, step)

    def mean_loss(self) -> float:
        """Returns the mean loss of the healthy steps since the last call."""
        losses, self._losses = self._losses, []
        return float(np.mean(losses)) if losses else math.inf


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Gives an event that SIGTERM and Ctrl-C set; a second signal acts as if this were not here."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in signals}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def hear(number, frame):
        stop.set()
        restore()
        tqdm.write("finishing this step and saving; once more to end at once", file=sys.stderr)

    for number in signals:
        signal.signal(number, hear)
    try:
        yield stop
    finally:
        restore()
