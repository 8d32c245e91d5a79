"""The programs of a task, on abstract arrays: what `generate` and `train` compile, in the same way.

No weights are read: a plan needs their shapes alone.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from stylecrafter_jax import params as weights
from stylecrafter_jax.checkpoints.bundle import part_of
from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.denoiser import Blocks, Condition
from stylecrafter_jax.diffusion.schedules import make_schedule
from stylecrafter_jax.kernels.dispatch import Implementation
from stylecrafter_jax.kernels.sharded import ROW_AXES
from stylecrafter_jax.media.images import STYLE_SIDE, clip_pixels
from stylecrafter_jax.models.networks import networks, parameter_shapes
from stylecrafter_jax.models.unet_video import Mode
from stylecrafter_jax.options import Resolved
from stylecrafter_jax.params import Params
from stylecrafter_jax.plan.count import count
from stylecrafter_jax.plan.parts import part_label
from stylecrafter_jax.programs import jitted
from stylecrafter_jax.sampling import (
    CARRY,
    decoder,
    frames_at_a_time,
    latent_shape,
    make_sampling,
)
from stylecrafter_jax.sharding import Layout, WeightLayout, placed
from stylecrafter_jax.train.experiment import Experiment
from stylecrafter_jax.train.goals import make_loss
from stylecrafter_jax.train.objective import EMPTY_TEXT
from stylecrafter_jax.train.optimizer import make_optimizer
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.step import init_state, make_train_step


class Program(NamedTuple):
    """One program of a task.

    Attributes:
        name: what it does.
        make: its arguments, abstract or not -> the function under `jax.jit`.
        args: its arguments, trees of abstract arrays.
        layouts: how each of them lies.
        times: how often it runs for one unit of the task.
        donated: number of the argument that it is given over and over, changed by each run.
        kept: of a result, what that argument is in the next run.
    """

    name: str
    make: Callable[[tuple[Any, ...]], Any]
    args: tuple[Any, ...]
    layouts: tuple[Layout, ...]
    times: float
    donated: int | None = None
    kept: Callable[[Any], Any] = lambda result: result

    def traced(self, mesh: Mesh | None = None) -> Any:
        """Returns the program traced, for a mesh whose `jax.set_mesh` the caller is in."""
        args = self.args
        if mesh is not None:
            laid = zip(args, self.layouts, strict=True)
            args = tuple(placed(arg, layout, mesh) for arg, layout in laid)
        return self.make(args).trace(*args)


class Task(NamedTuple):
    """What a user wants done.

    Attributes:
        name: such as "generate".
        unit: what all programs make together: a "pass" of a batch, a "step".
        rows: videos or examples of a unit, on all devices of a mesh together.
        row: what a row is: "video", "picture".
        programs: see above.
        weights: that a mesh holds while the programs run, those that are trained left out.
        state: what training updates: weights, their average, the optimizer's; None when generating.
        label: what an operation is for; see `parts`.
        layout: how the weights lie.
    """

    name: str
    unit: str
    rows: int
    row: str
    programs: list[Program]
    weights: Params
    state: Any
    label: Callable[[str], str]
    layout: WeightLayout = "weights"

    @property
    def trains(self) -> bool:
        """Whether all chips do it together; else as many as a batch is spread over."""
        return self.state is not None

    @property
    def held(self) -> dict[str, int]:
        """Bytes of the weights by part, before sharding."""
        held: dict[str, int] = {}
        for name, value in self.weights.items():
            held[part_of(name)] = held.get(part_of(name), 0) + _bytes(value)
        return held

    @property
    def state_bytes(self) -> int:
        """Bytes of the state, before sharding."""
        return sum(map(_bytes, jax.tree.leaves(self.state)))

    @property
    def flops(self) -> float:
        """Operations of a unit over all devices, counted."""
        return sum(count(p.traced().jaxpr.jaxpr).flops * p.times for p in self.programs)


def generation(
    config: ModelConfig,
    options: Resolved,
    *,
    batch: int = 1,
    dtype: DTypeLike = jnp.bfloat16,
    param_dtype: DTypeLike | None = jnp.bfloat16,
    styled: bool = True,
    impl: Implementation | None = None,
    params: Params | None = None,
    parted: bool = True,
    axes: Mapping[str, int] | None = None,
) -> Task:
    """Returns the task of generating a batch, one reference each.

    Args:
        config: the model.
        options: how to generate.
        batch: videos at a time.
        dtype: to compute in.
        param_dtype: to hold weights in, those of the CLIP towers excepted; None as `params` are.
        styled: with style images.
        impl: of the UNet's fused attentions.
        params: shapes and types of all weights; None is float32.
        parted: steps of each kind as a program of their own, to tell what each costs; else all
            steps as the one program that generation compiles.
        axes: of the mesh that a batch is spread over; None is one device.
    """
    nets = networks(config, jnp.dtype(dtype), impl=impl)
    schedule = make_schedule(config.schedule)
    params = _held(parameter_shapes(config) if params is None else params, param_dtype)
    unet, adapter, vae, text_encoder, image_encoder = (
        weights.select(params, f"^{part}/")
        for part in ("unet", "adapter", "vae", "text_encoder", "image_encoder")
    )
    sampling = make_sampling(nets, schedule, options, styled=styled)
    programs: list[Program] = []

    def add(
        name: str, function, *args, times: float = 1.0, donated: int | None = None, whole=True
    ) -> Any:
        donate = () if donated is None else (donated,)
        make = functools.partial(jitted, function, donate=donate, whole=whole)
        layouts: list[Layout] = ["whole" for _ in args]
        layouts[0] = "weights"
        if donated is not None:
            layouts[donated] = "videos"
        programs.append(Program(name, make, args, tuple(layouts), times, donated))
        return jax.eval_shape(function, *args)

    ids = jax.ShapeDtypeStruct((batch + 1, config.clip.text.context_length), jnp.int32)
    text = add("text encoder", nets.encode_text, text_encoder, ids)
    text: Any = jax.ShapeDtypeStruct((batch, *text.shape[1:]), text.dtype)
    style = scale = None
    if styled:
        size = config.clip.vision.image_size

        def encode(params, image):
            return nets.encode_image(params, clip_pixels(image, size=size))

        image = jax.ShapeDtypeStruct((1, STYLE_SIDE, STYLE_SIDE, 3), jnp.uint8)
        seen = add("image encoder", encode, image_encoder, image, times=float(batch))
        seen = jax.ShapeDtypeStruct((batch, *seen.shape[1:]), seen.dtype)
        style = add("style tokens", nets.style_tokens, adapter, seen)
        weight = jax.ShapeDtypeStruct((), jnp.float32)
        scale = add("style scales", nets.style_scale, adapter, style, text, weight)
    condition = Condition(text, text, style, scale)
    fps = jax.ShapeDtypeStruct((batch,), jnp.float32)
    steps = jax.eval_shape(lambda: sampling.steps)
    given = add("before the steps", sampling.prepare, unet, condition, steps, fps)
    x = jax.ShapeDtypeStruct((batch, *latent_shape(config, options)), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    whole = int(sampling.steps.whole.sum())
    kinds: list[tuple[str, float, Blocks]] = [
        ("step", float(whole), "all"),
        ("step of the outermost blocks", float(sampling.plan.steps - whole), "outermost"),
    ]
    if not parted:
        kinds = [("steps", 1.0, "planned")]
    for name, times, blocks in kinds:
        if not times:
            continue
        only = make_sampling(nets, schedule, options, styled=styled, blocks=blocks)
        carry = jax.eval_shape(only.begin, unet, given, x)
        args = (unet, given, keys, carry, np.int32(0), np.int32(1))
        add(name, only.advance, *args, times=times, donated=CARRY)
    frames = batch * options.frames
    devices = math.prod((axes or {}).get(axis, 1) for axis in ROW_AXES)
    chunk = frames_at_a_time(frames, options.decode_chunk, devices)
    z = jax.ShapeDtypeStruct((chunk, *x.shape[2:4], config.vae.embed_dim), jnp.float32)
    add("decoder", decoder(nets), vae, z, times=float(-(-frames // chunk)), whole=False)
    if not styled:
        unused = ("adapter", "image_encoder")
        params = {name: value for name, value in params.items() if part_of(name) not in unused}
    row = "picture" if options.image else "video"
    return Task("generate", "pass", batch, row, programs, params, None, part_label(config.unet))


def training(experiment: Experiment, config: ModelConfig) -> Task:
    """Returns the task of one step of an experiment; of both kinds, if it mixes pictures and clips.

    Args:
        experiment: the run; stage 1, stage 2 or another that trains the UNet.
        config: the model, whose weights are not read.

    Raises:
        ValueError: the stage trains an encoder.
    """
    stage, data, settings = STAGES[experiment.stage], experiment.data, experiment.train
    if stage.goal != "denoising":
        raise ValueError(f"{experiment.stage} is no stage that a plan can be made for")
    shapes = {n: s for n, s in parameter_shapes(config).items() if part_of(n) in stage.parts}
    trainable = weights.select(shapes, stage.trainable)
    frozen = {
        name: jax.ShapeDtypeStruct(value.shape, jnp.dtype(settings.frozen_dtype))
        for name, value in shapes.items()
        if name not in trainable
    }
    held = dict(frozen)
    width = config.unet.context_dim
    length = config.clip.text.context_length
    frozen[EMPTY_TEXT] = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
    tx = make_optimizer(experiment.optimizer, settings.steps)
    state = jax.eval_shape(lambda params: init_state(params, tx), trainable)
    key = jax.eval_shape(lambda: jax.random.key(0))
    layout = experiment.mesh.frozen_layout
    both = bool(data.images and data.videos)
    share = data.image_share if both else float(bool(data.images))
    kinds: list[tuple[str, Mode | None, int, int, float]] = [
        ("step on pictures", stage.image_mode, 1, data.image_batch, share),
        ("step on clips", stage.video_mode, data.frames, data.video_batch, 1.0 - share),
    ]
    programs, rows = [], 0.0
    for name, mode, frames, batch, times in kinds:
        if mode is None or times == 0.0:
            continue
        loss = make_loss(experiment, config, mode, end=config.clip.text.vocab_size - 1)
        step = make_train_step(
            loss, tx, ema_decay=settings.ema_decay, accumulate=settings.accumulate
        )
        args = (state, frozen, _batch(experiment, config, batch, frames), key)
        layouts: tuple[Layout, ...] = ("weights", layout, "rows", "whole")
        make = functools.partial(_same, step)
        programs.append(Program(name, make, args, layouts, times, 0, lambda result: result[0]))
        rows += times * batch
    name, label = experiment.stage, part_label(config.unet)
    return Task(name, "step", round(rows), "example", programs, held, state, label, layout)


def _batch(experiment: Experiment, config: ModelConfig, rows: int, frames: int) -> Params:
    """Returns a batch of pixels, as `data.transforms.Transform` makes its rows."""
    data, of = experiment.data, jax.ShapeDtypeStruct
    side = data.style_size
    style = {
        "style": of((rows, data.references, side, side, 3), jnp.uint8),
        "drop_style": of((rows,), jnp.bool_),
    }
    return (style if STAGES[experiment.stage].styled else {}) | {
        "pixels": of((rows, frames, data.height, data.width, 3), jnp.uint8),
        "ids": of((rows, config.clip.text.context_length), jnp.int32),
        "fps": of((rows,), jnp.float32),
        "drop_text": of((rows,), jnp.bool_),
    }


def _same(step: Any, args: tuple[Any, ...]) -> Any:
    """Returns a step that is jitted already, for any arguments."""
    return step


def _bytes(x: Any) -> int:
    return x.size * x.dtype.itemsize


def _held(params: Params, dtype: DTypeLike | None) -> Params:
    """Returns abstract parameters in the type that they are held in; of CLIP towers their own."""
    return {
        name: value
        if dtype is None or part_of(name).endswith("_encoder")
        else jax.ShapeDtypeStruct(value.shape, jnp.dtype(dtype))
        for name, value in params.items()
    }
