"""Results in batches: generated with a bar over the steps, and written as they are finished."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from stylecrafter_jax.commands.interruptible import interruptible
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.jobs import Job, JobError
from stylecrafter_jax.options import Resolved
from stylecrafter_jax.outputs import write_result
from stylecrafter_jax.request import Request


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
) -> Iterator[Job]:
    """Generates and writes results, and yields each job when its result is written.

    All batches have one shape, so that programs are compiled once: the last one is filled up with
    copies of its last request, and every request with references that count nothing.

    Raises:
        JobError: a result cannot be written, or the device's memory is too small.
    """
    references = max(len(item.job.entry.styles) for item in todo)
    batch_size = min(batch_size, len(todo))
    if not quiet:
        print("compiling, once for this size; this may take minutes", file=sys.stderr)
    for first in range(0, len(todo), batch_size):
        batch = todo[first : first + batch_size]
        requests = [_request(item.job, references) for item in batch]
        requests += requests[-1:] * (batch_size - len(batch))
        last = first + len(batch)
        place = f" ({last} of {len(todo)})" if len(todo) > 1 else ""
        bar = _StepBar(batch[-1].job.path.name + place, quiet)
        frames, seconds = _generate(model, requests, options, start, bar)
        for item, clip in zip(batch, frames, strict=False):
            notes = {"seconds": seconds, "batch": batch_size}
            write_result(item.job, clip, item.described, fps=options.fps, notes=notes)
            yield item.job


def _request(job: Job, references: int) -> Request:
    """Returns a job's request, filled up to a number of references with ones of weight 0."""
    styles, missing = job.entry.styles, references - len(job.entry.styles)
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
        if "RESOURCE_EXHAUSTED" not in str(error):
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
