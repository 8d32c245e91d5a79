"""Results in batches: generated with a bar over the steps, written and named when finished."""

import math
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from stylecrafter_jax.commands.interruptible import interruptible
from stylecrafter_jax.commands.several import failing_at_once
from stylecrafter_jax.diffusion.guidance import branches
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.jobs import Job, JobError
from stylecrafter_jax.media.images import load_style_image
from stylecrafter_jax.options import Resolved
from stylecrafter_jax.outputs import write_result
from stylecrafter_jax.processes import by_leader, gathered, leads, together
from stylecrafter_jax.programs import out_of_memory
from stylecrafter_jax.request import Request
from stylecrafter_jax.sharding import parts_of_rows


class Todo(NamedTuple):
    """A result to make, and what `describe_request` says of it."""

    job: Job
    described: dict[str, Any]


def make_results(
    model: StyleCrafter,
    todo: Sequence[Todo],
    options: Resolved,
    *,
    start: UInt8[np.ndarray, "f h w 3"] | None = None,
    batch_size: int = 1,
    quiet: bool = False,
    stop: threading.Event | None = None,
) -> int:
    """Generates and writes results; the path of each is printed when it is written.

    All batches have one shape, so that programs are compiled once: the last one is filled up with
    copies of its last request, and every request with references that count nothing. Over a mesh
    each part of a batch has as many results, or as many branches of guidance.

    Several processes call it with the same arguments. All compute, and the first one alone writes
    and prints. A stop that one was asked for, or an error of one, ends all after the same batch.

    Args:
        model: generates.
        todo: the results, at least one.
        options: of all.
        start: frames that all start from.
        batch_size: results at a time, or a few more for an even share.
        quiet: say nothing on standard error.
        stop: asks to end after the batch under way.

    Returns:
        The number of results made: less than all after a stop.

    Raises:
        JobError: a result cannot be written, or the device's memory is too small.
        ElsewhereError: another process had an error.
    """
    quiet = quiet or not leads()
    references = max(len(item.job.entry.styles) for item in todo)
    # The branches of guidance are rows as well: three devices may share those of one result.
    parts = parts_of_rows(model.mesh)
    share = parts // math.gcd(parts, len(branches(options.guidance, references > 0)))
    batch_size = math.ceil(min(batch_size, len(todo)) / share) * share
    if not quiet:
        print("compiling, once for this size; this may take minutes", file=sys.stderr)
    for first in range(0, len(todo), batch_size):
        if any(gathered(stop is not None and stop.is_set())):
            return first
        batch = todo[first : first + batch_size]
        pictures = together(lambda b=batch: _pictures(b))
        requests = [_request(item.job, references, pictures) for item in batch]
        requests += requests[-1:] * (batch_size - len(batch))
        last = first + len(batch)
        place = f" ({last} of {len(todo)})" if len(todo) > 1 else ""
        bar = _StepBar(batch[-1].job.path.name + place, quiet)
        with failing_at_once():
            frames, seconds = _generate(model, requests, options, start, bar)
        notes = {"seconds": seconds, "batch": batch_size}
        by_leader(lambda b=batch, f=frames, n=notes: _write(b, f, options.fps, n))
    return len(todo)


def _write(
    batch: Sequence[Todo],
    frames: UInt8[np.ndarray, "b f h w 3"],
    fps: int,
    notes: dict[str, Any],
) -> None:
    for item, clip in zip(batch, frames, strict=False):
        write_result(item.job, clip, item.described, fps=fps, notes=notes)
        print(item.job.path, flush=True)


def _pictures(batch: Sequence[Todo]) -> dict[Path, UInt8[np.ndarray, "h w 3"]]:
    """Returns the style images of a batch, each read once."""
    paths = dict.fromkeys(path for item in batch for path in item.job.entry.styles)
    return {path: load_style_image(path) for path in paths}


def _request(job: Job, references: int, pictures: Mapping[Path, np.ndarray]) -> Request:
    """Returns a job's request, filled up to a number of references with ones of weight 0."""
    styles = tuple(pictures[path] for path in job.entry.styles)
    missing = references - len(styles)
    if not missing:
        return Request(job.entry.prompt, styles, job.weights, job.index)
    given = job.weights or (1.0,) * len(styles)
    styles, given = styles + styles[:1] * missing, given + (0.0,) * missing
    return Request(job.entry.prompt, styles, given, job.index)


def _generate(
    model: StyleCrafter,
    requests: Sequence[Request],
    options: Resolved,
    start: UInt8[np.ndarray, "f h w 3"] | None,
    bar: "_StepBar",
) -> tuple[UInt8[np.ndarray, "b f h w 3"], dict[str, float]]:
    """Returns the frames of a batch, and the seconds it took, of which compiling, and per step."""
    began, compiled = time.perf_counter(), model.programs.compile_seconds

    def work(stop: threading.Event):
        def progress(step: int, total: int) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            bar.update(step, total)

        return model.generate(requests, options, start=start, progress=progress)

    try:
        frames = interruptible(work)
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        raise JobError(
            "the device's memory is too small for this; try a smaller --batch-size, "
            "--decode-chunk 1, --decode-tile 32, --param-dtype bfloat16, fewer frames or a "
            "smaller size"
        ) from error
    finally:
        bar.close()
    seconds = {
        "total": time.perf_counter() - began,
        "compile": model.programs.compile_seconds - compiled,
        "per_step": bar.seconds_per_step,
    }
    bar.say(
        f"{seconds['total']:.1f} s, of which compiling {seconds['compile']:.1f} s; "
        f"{seconds['per_step']:.3f} s a step"
    )
    return frames, seconds


class _StepBar:
    """A progress bar over sampling steps that starts with the first step, not with compiling."""

    def __init__(self, name: str, quiet: bool):
        self.name, self.quiet = name, quiet
        self.bar: tqdm | None = None
        self.began = 0.0
        self.seconds_per_step = 0.0

    def update(self, step: int, total: int) -> None:
        if self.bar is None:
            self.began = time.perf_counter()
            self.bar = tqdm(total=total, desc=self.name, unit="step", disable=self.quiet)
        self.bar.update(step - self.bar.n)
        if step:
            self.seconds_per_step = (time.perf_counter() - self.began) / step
        if step == total:
            self.close()  # decoding is no step

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
