"""Samples of a run: the same prompts, styles and random numbers, from the weights so far."""

import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from stylecrafter_jax.checkpoints.bundle import load_bundle, part_of, read_config
from stylecrafter_jax.config import ConfigError, ModelConfig
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.media.images import load_style_image
from stylecrafter_jax.media.video import contact_sheet, write_frames
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.options import Options, Resolved
from stylecrafter_jax.params import Params
from stylecrafter_jax.programs import Programs
from stylecrafter_jax.request import Request, check_requests
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train.experiment import Experiment
from stylecrafter_jax.train.start import Start

SAMPLES = "samples"
FRAMES = 4  # of a clip, in a grid


class Sampler(NamedTuple):
    """Writes `step_000500.png`, and `.mp4` of videos; its programs are compiled once.

    Attributes:
        every: steps between samples.
        folder: where they go.
        requests: one for each prompt and style, in this order; made one after another.
        options: how to generate.
        model: all parameters that the run holds -> the model of them.
    """

    every: int
    folder: Path
    requests: Sequence[Request]
    options: Resolved
    model: Callable[[Params], StyleCrafter]

    def __call__(self, step: int, params: Params) -> UInt8[np.ndarray, "y x 3"]:
        """Returns the grid that it wrote: a row for each request, its reference first.

        Raises:
            ValueError: the pixels are not finite.
            MediaError: a file cannot be written.
        """
        model, size = self.model(params), (self.options.width, self.options.height)
        rows = []
        for request in self.requests:
            clip = model.generate([request], self.options)[0]
            rows.append([*(_fitted(load_style_image(s), size) for s in request.styles), clip])
        shown = [np.concatenate([*row[:-1], _spread(row[-1])]) for row in rows]
        grid = contact_sheet(shown, len(shown[0]))
        picture, *clips = self._files(step)
        write_frames(grid[None], picture, fps=1)
        for clip in clips:
            write_frames(_side_by_side(rows), clip, fps=self.options.fps)
        return grid

    def due(self, step: int) -> bool:
        """Returns whether samples are to be made after a step."""
        return step > 0 and step % self.every == 0

    def lacking(self, step: int) -> bool:
        """Returns whether samples are due and not there, as after a stop at their step."""
        return self.due(step) and not all(path.is_file() for path in self._files(step))

    def _files(self, step: int) -> list[Path]:
        picture = self.folder / f"step_{step:06d}.png"
        return [picture] if self.options.image else [picture, picture.with_suffix(".mp4")]


def make_sampler(experiment: Experiment, start: Start, run: Path) -> Sampler | None:
    """Returns what makes a run's samples; None if it wants none.

    Everything that can be wrong with the settings is found here. Parts that training did not load
    are loaded for sampling; they stay in host memory between samples.

    Raises:
        ConfigError: a setting does not fit the model, or a style image cannot be used.
        CheckpointError: the bundle lacks a part that sampling needs.
    """
    samples = experiment.samples
    if not samples.every:
        return None
    try:
        options = sample_options(experiment, start.config)
        styles = [load_style_image(path) for path in samples.styles]
        requests = [
            Request(prompt, given, index=i)  # of one prompt in all styles the noise is the same
            for i, prompt in enumerate(samples.prompts)
            for given in ([[style] for style in styles] or [()])
        ]
        check_requests(requests, styled=True)
    except ValueError as error:
        raise ConfigError(f"samples: {error}") from error
    parts = ["unet", "vae", "text_encoder"] + ["adapter", "image_encoder"] * bool(styles)
    model = functools.partial(
        _model,
        config=start.config,
        others=missing(Path(experiment.bundle), {*start.frozen, *start.trainable}, parts),
        tokenizer=start.tokenizer,
        dtype=experiment.train.compute_dtype,
        programs=Programs(),
    )
    return Sampler(samples.every, run / SAMPLES, requests, options, model)


def sample_options(experiment: Experiment, config: ModelConfig) -> Resolved:
    """Returns how a run's samples are generated: pictures, unless the run trains on videos.

    Raises:
        ValueError: a setting does not fit the model.
    """
    samples = experiment.samples
    frames = samples.frames or (None if experiment.data.videos else 1)
    return Options(
        image=frames == 1,
        height=samples.height,
        width=samples.width,
        frames=frames,
        steps=samples.steps,
        sampler=samples.sampler,
        guidance=samples.guidance,
        seed=samples.seed,
    ).resolved(config)


def missing(bundle: Path, have: Collection[str], parts: Collection[str]) -> Params:
    """Returns the parameters of some parts of a bundle that are not among the names `have`.

    Raises:
        CheckpointError: the bundle lacks such a part, or is damaged.
    """
    names = {
        name
        for name in parameter_shapes(read_config(bundle))
        if part_of(name) in parts and name not in have
    }
    if not names:
        return {}
    wanted = sorted({part_of(name) for name in names})
    _, params = load_bundle(bundle, expected=parameter_shapes, parts=wanted)
    return {name: params[name] for name in names}


def _model(
    params: Params,
    *,
    config: ModelConfig,
    others: Params,
    tokenizer: Tokenizer,
    dtype: str,
    programs: Programs,
) -> StyleCrafter:
    """Returns a model of the moment's weights, which uses the programs of those before it.

    It copies no weight that is on the device already, and must not outlive the training step.
    """
    model = StyleCrafter(config, {**others, **params}, tokenizer, dtype=jnp.dtype(dtype))
    model.programs = programs
    return model


def _fitted(
    style: UInt8[np.ndarray, "s s 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "1 h w 3"]:
    """Returns a reference at a sample's (width, height), its margins white."""
    return np.asarray(ImageOps.pad(Image.fromarray(style), size, color="white"))[None]


def _spread(clip: UInt8[np.ndarray, "f h w 3"]) -> UInt8[np.ndarray, "k h w 3"]:
    """Returns at most `FRAMES` frames, evenly spaced, the first and the last included."""
    return clip[np.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).round().astype(int)]


def _side_by_side(
    rows: Sequence[Sequence[UInt8[np.ndarray, "_ h w 3"]]],
) -> UInt8[np.ndarray, "f y x 3"]:
    """Returns one video of all rows of clips; a clip of one frame stands still."""
    length = max(len(clip) for clip in rows[0])

    def still(clip):
        return clip if len(clip) == length else np.repeat(clip, length, axis=0)

    wide = [np.concatenate([still(clip) for clip in row], axis=2) for row in rows]
    return np.concatenate(wide, axis=1)
