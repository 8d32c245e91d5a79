"""Everything a training run needs, as one frozen config; `configs/` holds ready ones."""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.config_file import call_in_file
from stylecrafter_jax.config_json import from_dict, to_dict
from stylecrafter_jax.data.transforms import Drop
from stylecrafter_jax.diffusion.guidance import Guidance
from stylecrafter_jax.diffusion.samplers import SAMPLERS
from stylecrafter_jax.foreign import QUOTED, one_line
from stylecrafter_jax.models.unet_video import Remat
from stylecrafter_jax.options import LAST_SEED, Options
from stylecrafter_jax.train.stages import STAGES, StageName


def _in_range(
    name: str, value: float | int | None, low: float | int, high: float | int = math.inf
) -> None:
    """Refuses a number outside [low, high], or one that is not finite; None is no number."""
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        wanted = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ConfigError(f"{name} must be {wanted}, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer; see `optimizer.learning_rate` for the schedules.

    The paper names neither rate nor optimizer; these are IP-Adapter's, the ancestor of the released
    SDXL trainer, which itself uses 5e-5 and no weight decay.

    Attributes:
        name: `adamw`, or `muon`, which learns in fewer steps where all of a network is trained.
        momentum: of Muon.
        not_matrices: kernels that Muon leaves to AdamW: embeddings, the first and the last layer.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    decay_steps: int | None = None
    final_ratio: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float | None = None
    momentum: float = 0.95
    not_matrices: str = r"embed|/input_blocks\.0\.0/|/out\.2/|/conv_in/|/conv_out/"

    def __post_init__(self):
        tiny = 1e-30
        try:
            re.compile(self.not_matrices)
        except re.error as error:
            raise ConfigError(f"optimizer.not_matrices is no pattern: {error}") from error
        _in_range("optimizer.momentum", self.momentum, 0, 1)
        _in_range("optimizer.learning_rate", self.learning_rate, tiny)
        _in_range("optimizer.warmup_steps", self.warmup_steps, 0)
        _in_range("optimizer.decay_steps", self.decay_steps, self.warmup_steps + 1)
        _in_range("optimizer.final_ratio", self.final_ratio, 0, 1)
        _in_range("optimizer.b1", self.b1, 0, 1)
        _in_range("optimizer.b2", self.b2, 0, 1)
        _in_range("optimizer.eps", self.eps, tiny)
        _in_range("optimizer.weight_decay", self.weight_decay, 0)
        _in_range("optimizer.clip_norm", self.clip_norm, tiny)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Options of the losses; the defaults of the denoising loss are the original's plain one.

    Attributes:
        min_snr_gamma: see `objective.denoising`; likewise `weight_floor`, `noise_offset` and
            `timestep_shift`.
        kl_weight: see `encoder_losses.reconstruction`.
    """

    min_snr_gamma: float | None = None
    weight_floor: float = 0.0
    noise_offset: float = 0.0
    timestep_shift: float = 1.0
    kl_weight: float = 1e-4

    def __post_init__(self):
        _in_range("loss.min_snr_gamma", self.min_snr_gamma, 1e-30)
        _in_range("loss.weight_floor", self.weight_floor, 0, 1)
        _in_range("loss.noise_offset", self.noise_offset, 0)
        _in_range("loss.timestep_shift", self.timestep_shift, 0.01, 100)
        _in_range("loss.kl_weight", self.kl_weight, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run sees; see `data.transforms.Transform` for the meaning of the crops.

    Attributes:
        images: where pictures come from, whatever `data.sources.open_source` takes; None: nowhere.
        videos: where videos come from.
        height: of the target, in pixels; `width` likewise.
        frames: of a clip; pictures have one.
        stride: smallest and largest space between a clip's frames, in frames of the file.
        references: style images per example.
        flip: chance that target and style are mirrored.
        captions: how captions are cleaned.
        drop: chances to drop text, style, or both.
        image_batch: pictures per batch; `video_batch` clips per batch.
        image_share: share of the batches that are pictures, where a run has both.
        workers: processes that prepare batches; 0 uses `threads` threads of this one.
        max_bad_rate: share of a source's records that may be unusable.
    """

    images: str | None = None
    videos: str | None = None
    height: int = 512
    width: int = 512
    frames: int = 16
    stride: tuple[int, int] = (1, 1)
    style_short_side: int = 800
    style_size: int = 512
    references: int = 1
    flip: float = 0.0
    captions: Literal["clean", "released", "none"] = "clean"
    drop: Drop = Drop()
    image_batch: int = 16
    video_batch: int = 1
    image_share: float = 0.2
    workers: int = 0
    threads: int = 2
    max_bad_rate: float = 0.1

    def __post_init__(self):
        for name in ("height", "width", "style_short_side", "style_size", "references"):
            _in_range(f"data.{name}", getattr(self, name), 1)
        for name in ("image_batch", "video_batch", "threads"):
            _in_range(f"data.{name}", getattr(self, name), 1)
        for name in ("flip", "image_share", "max_bad_rate"):
            _in_range(f"data.{name}", getattr(self, name), 0, 1)
        _in_range("data.frames", self.frames, 2)
        _in_range("data.workers", self.workers, 0)
        if len(self.stride) != 2:
            raise ConfigError(f"data.stride must be two numbers, got {list(self.stride)}")
        if self.images and self.videos and not 0 < self.image_share < 1:
            raise ConfigError(
                f"data.image_share must lie between 0 and 1 with both pictures and videos, got "
                f"{self.image_share:g}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop.

    Attributes:
        steps: updates in all.
        save_every: steps between checkpoints; `log_every` between lines of metrics.
        keep_last: newest checkpoints kept; `keep_best` those of the lowest mean loss since the
            checkpoint before.
        ema_decay: of the moving average of the weights; 0 keeps the last weights.
        accumulate: parts a batch is split into.
        compute_dtype: of the networks; frozen_dtype is what frozen weights are held in.
        remat: what the UNet computes again in the backward pass.
        max_skipped: updates skipped in a row before the run is given up.
        on_save_error: where a checkpoint cannot be written, `stop` the run, or `continue` and try
            again after `save_every` more steps. The last one must be written either way.
        spike_deviations: losses so far above those before them are reported; see `spikes`. None
            reports none.
    """

    steps: int = 40_000
    save_every: int = 1_000
    log_every: int = 50
    keep_last: int = 3
    keep_best: int = 1
    ema_decay: float = 0.9999
    accumulate: int = 1
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    frozen_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Remat = "none"
    max_skipped: int = 10
    on_save_error: Literal["stop", "continue"] = "stop"
    spike_deviations: float | None = 8.0
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "save_every", "log_every", "keep_last", "accumulate", "max_skipped"):
            _in_range(f"train.{name}", getattr(self, name), 1)
        _in_range("train.keep_best", self.keep_best, 0)
        _in_range("train.ema_decay", self.ema_decay, 0, 1)
        _in_range("train.spike_deviations", self.spike_deviations, 1)
        _in_range("train.seed", self.seed, 0, 2**32 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Which devices a run is spread over; it changes what is trained by rounding alone.

    Attributes:
        data: groups of devices, each with one copy of the weights and its own rows of a batch; None
            takes as many as there are devices for and the batches can be split over.
        fsdp: parts of that copy, gathered where they are used; rows are split over them as well.
        frames: parts of a video, for clips too long or too large for one device.
        tensor: parts of the heads and channels of attention, feed-forward and convolutions.
        replicate_frozen: hold what is not trained whole in every part of `fsdp`, not gather it in
            every step: faster where there is memory for it, see `stylecrafter plan`.
    """

    data: int | None = None
    fsdp: int = 1
    frames: int = 1
    tensor: int = 1
    replicate_frozen: bool = False

    def __post_init__(self):
        for name in ("data", "fsdp", "frames", "tensor"):
            _in_range(f"mesh.{name}", getattr(self, name), 1)

    @property
    def frozen_layout(self) -> Literal["weights", "replicated"]:
        """How weights that are not trained lie, see `sharding.Layout`."""
        return "replicated" if self.replicate_frozen else "weights"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What a run generates on its way; it changes nothing of what is trained.

    Attributes:
        every: steps between samples; 0 makes none.
        prompts: each is shown in each of the styles.
        styles: paths of style images; without any, the samples have no style.
        steps: of the sampler; this, `sampler`, `guidance`, `seed`, `height` and `width` are those
            of `options.Options`.
        frames: 1 makes pictures; None is the model's own length in runs on videos, else 1.
        use_ema: sample from the moving average, not from the last weights.
    """

    every: int = 0
    prompts: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    steps: int | None = None
    sampler: str | None = None
    guidance: Guidance | None = None
    seed: int = Options.seed
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    use_ema: bool = True

    def __post_init__(self):
        _in_range("samples.every", self.every, 0)
        for name in ("steps", "height", "width", "frames"):
            _in_range(f"samples.{name}", getattr(self, name), 1)
        _in_range("samples.seed", self.seed, 0, LAST_SEED)
        if self.sampler is not None and self.sampler not in SAMPLERS:
            known = ", ".join(SAMPLERS)
            raise ConfigError(f"samples.sampler must be one of {known}, got {self.sampler!r}")
        if self.every and not self.prompts:
            raise ConfigError("samples.every is set but samples.prompts is empty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run.

    Attributes:
        stage: one of `stages.STAGES`.
        bundle: the model to start from. Parts that the stage trains may be absent and are then
            initialised: the adapter of a base model, or the UNet of a new one.
    """

    stage: StageName
    bundle: str
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    samples: SampleConfig = SampleConfig()

    def __post_init__(self):
        if self.stage not in STAGES:
            raise ConfigError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        stage, data, parts = STAGES[self.stage], self.data, self.train.accumulate
        if data.videos and stage.video_mode is None:
            raise ConfigError(f"{self.stage} trains on pictures alone; data.videos must be null")
        if not data.images and not data.videos:
            raise ConfigError("there is nothing to train on: set data.images or data.videos")
        if self.samples.every and stage.goal != "denoising":
            raise ConfigError(f"{self.stage} generates nothing; samples.every must be 0")
        if self.samples.styles and not stage.styled:
            raise ConfigError(f"{self.stage} trains without style; samples.styles must be empty")
        for source, name in ((data.images, "image_batch"), (data.videos, "video_batch")):
            if source and getattr(data, name) % parts:
                raise ConfigError(
                    f"data.{name} {getattr(data, name)} is no multiple of train.accumulate {parts}"
                )


def load_experiment(path: Path) -> Experiment:
    """Returns the experiment of a Python file with `get_config()`; the file is run.

    Raises:
        ConfigError: there is no such file, it fails, or it gives something else.
    """
    return call_in_file(path, "get_config", Experiment)


def override(experiment: Experiment, assignments: Sequence[str]) -> Experiment:
    """Returns the experiment with settings such as `train.steps=10` replaced.

    A value is JSON, or else text.

    Raises:
        ConfigError: a name is unknown (the nearest right one is given) or a value has the wrong
            type or contradicts another.
    """
    values = to_dict(experiment)
    names = leaves(values)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"wanted NAME=VALUE, got {assignment!r}")
        if name not in names:
            near = difflib.get_close_matches(name[:QUOTED], names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown setting {one_line(name)}{hint}")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        *branches, leaf = name.split(".")
        node = values
        for branch in branches:
            node = node[branch]
        node[leaf] = value
    return from_dict(Experiment, values)


def differences(old: dict[str, Any], new: dict[str, Any], free: Collection[str] = ()) -> list[str]:
    """Returns one line for each setting that differs between two experiments as dicts.

    Args:
        old: one of them.
        new: the other.
        free: names of settings, or of groups of them such as `mesh`, that may differ.
    """
    before, after = leaves(old), leaves(new)
    return [
        f"{name} was {json.dumps(before.get(name))}, is now {json.dumps(after.get(name))}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name) and not {name, name.split(".")[0]} & set(free)
    ]


def leaves(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Returns an experiment as plain values by the names that `override` takes."""
    flat = {}
    for name, value in values.items():
        path = f"{where}.{name}" if where else name
        flat |= leaves(value, path) if isinstance(value, dict) else {path: value}
    return flat
