"""What a run is made of before it has a folder; whatever its settings can have wrong is found."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.config_json import to_dict
from stylecrafter_jax.data.device import DeviceBatches
from stylecrafter_jax.data.pipeline import make_batches
from stylecrafter_jax.models.unet_video import Mode
from stylecrafter_jax.params import Params
from stylecrafter_jax.processes import agree, several, together
from stylecrafter_jax.sharding import axes_of, batch_sharding, check_processes, own_blocks, run_mesh
from stylecrafter_jax.train.experiment import Experiment
from stylecrafter_jax.train.feature_fit import check_features
from stylecrafter_jax.train.goals import make_loss
from stylecrafter_jax.train.objective import are_pictures
from stylecrafter_jax.train.optimizer import make_optimizer
from stylecrafter_jax.train.samples import Sampler, make_sampler
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.start import Start, load_start
from stylecrafter_jax.train.step import Batch, Loss, Metrics, TrainState, make_train_step
from stylecrafter_jax.train.streams import check_size, make_streams

Step = Callable[[TrainState, Params, Batch, jax.Array], tuple[TrainState, Metrics]]


class Parts(NamedTuple):
    """What a run is made of before it has a folder; `steps` are those of pictures and of videos."""

    start: Start
    mesh: Mesh | None
    ahead: DeviceBatches
    sampler: Sampler | None
    tx: optax.GradientTransformation
    steps: tuple[Step | None, Step | None]

    def step_of(self, batch: Batch) -> Step:
        """Returns the step for a batch."""
        step = self.steps[0 if are_pictures(batch) else 1]
        assert step is not None, "an experiment has no source that its stage cannot use"
        return step

    def check_alike(self, experiment: Experiment) -> None:
        """Checks that all processes of a run have the same before them; all must call it.

        Raises:
            ValueError: they have not; see `processes.agree`.
        """
        if not several():
            return
        batches = self.ahead.batches
        names = together(batches.some_names)
        data = [batches.get_state()["identity"], names]
        agree({"config": to_dict(experiment), "bundle": self.start.manifest, "data": data})

    def without_weights(self) -> "Parts":
        """Returns them without the weights in host memory, for when the devices have theirs."""
        return self._replace(start=self.start._replace(trainable={}, frozen={}))


def prepare(experiment: Experiment, run: Path, stack: contextlib.ExitStack) -> Parts:
    """Returns the parts of a run; everything that can be wrong with its settings is found here."""
    stage, settings, data = STAGES[experiment.stage], experiment.train, experiment.data
    start = load_start(
        Path(experiment.bundle),
        stage,
        frozen_dtype=jnp.dtype(settings.frozen_dtype),
        seed=settings.seed,
        encoders=not check_features(experiment),
    )
    check_size(data, start.config)
    mesh = _mesh(experiment)
    blocks, block_count = ([0], 1) if mesh is None else own_blocks(mesh)
    batches = make_batches(
        make_streams(data, start.tokenizer, styled=stage.styled),
        seed=settings.seed,
        blocks=blocks,
        block_count=block_count,
        workers=data.workers,
        threads=data.threads,
        max_bad_rate=data.max_bad_rate,
    )
    stack.callback(batches.close)
    tx = make_optimizer(experiment.optimizer, settings.steps)
    picture_step, video_step = (
        None if mode is None else build_step(experiment, start, tx, mode)
        for mode in (stage.image_mode, stage.video_mode)
    )
    ahead = DeviceBatches(batches, None if mesh is None else batch_sharding(mesh))
    sampler = make_sampler(experiment, start, run)
    return Parts(start, mesh, ahead, sampler, tx, (picture_step, video_step))


def _mesh(experiment: Experiment) -> Mesh | None:
    """Returns the devices of a run; None where it is one.

    Raises:
        ConfigError: there are fewer than it wants, or its batches cannot be split over them.
    """
    wanted, data, parts = experiment.mesh, experiment.data, experiment.train.accumulate
    batches = [(data.images, data.image_batch), (data.videos, data.video_batch)]
    rows = math.gcd(*(batch // parts for source, batch in batches if source))
    try:
        mesh = run_mesh(wanted.data, wanted.fsdp, wanted.frames, wanted.tensor, rows=rows)
        check_processes(mesh, f"{axes_of(mesh)}")
    except ValueError as error:
        raise ConfigError(f"mesh: {error}") from error
    return None if mesh.size == 1 else mesh


def build_step(
    experiment: Experiment, start: Start, tx: optax.GradientTransformation, mode: Mode
) -> Step:
    """Returns the jitted step of an experiment for batches that the UNet sees in `mode`."""
    settings, loss = experiment.train, build_loss(experiment, start, mode)
    return make_train_step(loss, tx, ema_decay=settings.ema_decay, accumulate=settings.accumulate)


def build_loss(experiment: Experiment, start: Start, mode: Mode) -> Loss:
    """Returns the loss that these steps descend."""
    return make_loss(experiment, start.config, mode, end=start.tokenizer.end)
