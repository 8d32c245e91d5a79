"""`stylecrafter generate`: from arguments to finished files."""

import argparse
import dataclasses
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from stylecrafter_jax import embedded
from stylecrafter_jax.checkpoints.bundle import (
    manifest_hash,
    parts_of,
    read_config,
    read_manifest,
)
from stylecrafter_jax.commands import statuses
from stylecrafter_jax.commands.arguments import read_mesh, start_processes
from stylecrafter_jax.commands.batches import Todo, make_results
from stylecrafter_jax.commands.several import losing_none
from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.generate import StyleCrafter, default_dtype
from stylecrafter_jax.jobs import (
    Entry,
    Job,
    JobError,
    check_entries,
    check_rate,
    format_of,
    job_paths,
    named_after,
    read_list,
    sha256,
)
from stylecrafter_jax.media.images import load_style_image
from stylecrafter_jax.media.video import read_video
from stylecrafter_jax.options import Options, Resolved, usual_guidance
from stylecrafter_jax.outputs import describe_request, is_done, make_folders
from stylecrafter_jax.processes import agree, leads, several, together, told
from stylecrafter_jax.programs import keep_on_disk
from stylecrafter_jax.request import Request, check_requests
from stylecrafter_jax.signals import stop_signals
from stylecrafter_jax.tokenizer import Tokenizer

OUT = Path("outputs")
NO_BUNDLE = (
    "no --bundle: the embedded demo model draws this, 64x64 pixels, and knows few words; "
    "`stylecrafter convert import` makes a bundle of the released checkpoints"
)
DIRECT = (  # arguments that are fields of Options
    *("image", "height", "width", "frames", "fps", "condition_fps", "steps", "sampler", "eta"),
    *("karras", "style_weight", "negative_prompt", "seed", "strength"),
    *("fast", "cache_interval", "cache_blocks", "decode_chunk", "decode_tile"),
)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Asked(NamedTuple):
    """What the arguments ask for, with everything checked that can be wrong about it.

    Attributes:
        bundle: the model.
        mesh: devices that work together.
        options: how to generate.
        start: frames to start from.
        results: all of them, made already or not.
    """

    bundle: Path
    mesh: Mesh | None
    options: Resolved
    start: UInt8[np.ndarray, "f h w 3"] | None
    results: list[Todo]


def run(args: argparse.Namespace) -> int:
    """Makes results as one of several processes, or alone; see `make` for the status."""
    start_processes(args)
    if not several():
        return make(args)
    with losing_none(), stop_signals("ending after this batch; once more to end at once") as stop:
        return make(args, stop)


def make(args: argparse.Namespace, stop: threading.Event | None = None) -> int:
    """Makes every result that is not there yet; prints the path of each on standard output.

    Several processes read and check everything alike; the first one decides what is to be made.

    Args:
        args: of the command.
        stop: asks to end after the batch under way.

    Returns:
        The exit status.
    """
    keep_on_disk()
    asked = together(lambda: _asked(args))
    agree(_compared(asked, args))
    todo = [asked.results[i] for i in told(lambda: _absent(asked.results, args))]
    if not todo:
        return 0
    model = together(
        lambda: StyleCrafter.load(
            asked.bundle, dtype=args.dtype, param_dtype=args.param_dtype, mesh=asked.mesh
        )
    )
    if leads():
        _warn(model.tokenizer, [item.job.entry for item in todo], asked.options.negative_prompt)
    made = make_results(
        model,
        todo,
        asked.options,
        start=asked.start,
        batch_size=args.batch_size,
        quiet=args.quiet,
        stop=stop,
    )
    if made == len(todo):
        return 0
    if leads():
        line = f"stopped after {made} of {len(todo)} results; run the same again to go on"
        print(line, file=sys.stderr)
    return statuses.STOPPED


def _asked(args: argparse.Namespace) -> Asked:
    jobs, bundle = make_jobs(args), args.bundle or embedded.BUNDLE
    mesh = read_mesh(args.mesh)
    if args.bundle is None and not args.quiet and leads():
        print(NO_BUNDLE, file=sys.stderr)
    options = make_options(args, read_config(bundle))
    start = _read_start(args.start, options)
    return Asked(bundle, mesh, options, start, _described(jobs, args, bundle, options))


def _compared(asked: Asked, args: argparse.Namespace) -> dict[str, Any]:
    """Returns what all processes must have in common to run the same programs, by its name."""
    described = [item.described for item in asked.results]
    shared = ("model", "options")  # by all results
    return {
        "model": described[0]["model"],
        "set of options": described[0]["options"],
        "list of results": [
            {name: value for name, value in result.items() if name not in shared}
            for result in described
        ],
        "mesh": None if asked.mesh is None else dict(asked.mesh.shape),
        "batch size": args.batch_size,
        "decode chunk": asked.options.decode_chunk,
    }


def _absent(results: Sequence[Todo], args: argparse.Namespace) -> list[int]:
    """Returns the numbers of the results to make; names the others, and makes the folders."""
    done = {item.job.path for item in results if is_done(*item, overwrite=args.overwrite)}
    todo = [i for i, item in enumerate(results) if item.job.path not in done]
    make_folders([results[i].job for i in todo])
    for item in results:
        if item.job.path in done:
            print(item.job.path, flush=True)
    if done and not args.quiet:
        print(f"{len(done)} of {len(results)} results are already there", file=sys.stderr)
    return todo


def _described(
    jobs: Sequence[Job], args: argparse.Namespace, bundle: Path, options: Resolved
) -> list[Todo]:
    """Returns every result asked for; all that can be wrong about one is found here."""
    check_rate(jobs[0].form, options.fps)
    requests = [Request(job.entry.prompt, job.entry.styles, job.weights, job.index) for job in jobs]
    styled = "adapter" in parts_of(read_manifest(bundle))
    check_requests(requests, styled=styled)
    hashes = check_entries([job.entry for job in jobs])
    model = {
        "manifest_sha256": manifest_hash(bundle),
        "dtype": args.dtype or default_dtype().name,
        "param_dtype": args.param_dtype,
        "start": None if args.start is None else sha256(args.start),
    }
    results = [Todo(job, describe_request(job, options, model, hashes)) for job in jobs]
    if args.list is None and args.out is None:
        results = [Todo(named_after(*result), result.described) for result in results]
    return results


def make_jobs(args: argparse.Namespace) -> list[Job]:
    """Returns the results that the arguments ask for; style images are not looked at.

    Raises:
        JobError: arguments contradict each other, or the list cannot be read.
    """
    entries = _entries(args)
    for name in ("samples", "batch_size"):
        if getattr(args, name) < 1:
            given = getattr(args, name)
            raise JobError(f"--{name.replace('_', '-')} must be at least 1, got {given}")
    form = format_of(args.out, args.format, args.image)
    out = args.out or (OUT if args.list is None else OUT / args.list.stem)
    weights = None if args.style_weights is None else tuple(args.style_weights)
    paths = job_paths(out, len(entries), args.samples, form, args.image)
    return [
        Job(
            entry=entries[i // args.samples],
            index=args.index + i,
            weights=weights,
            path=path,
            form=form,
        )
        for i, path in enumerate(paths)
    ]


def _entries(args: argparse.Namespace) -> list[Entry]:
    if args.list is not None:
        for name in ("prompt", "style", "style_weights"):
            if getattr(args, name) is not None:
                name = "the prompt" if name == "prompt" else "--" + name.replace("_", "-")
                raise JobError(f"--list brings its own prompts and style images; leave out {name}")
        return read_list(args.list)
    if args.prompt is None:
        hint = "; it comes before --style, which takes all that follows" if args.style else ""
        raise JobError(f"there is neither a prompt nor a --list{hint}")
    return [Entry(args.prompt, tuple(args.style or ()))]


def make_options(args: argparse.Namespace, config: ModelConfig) -> Resolved:
    """Returns the options that were given; what was not is the model's own."""
    given = {name: getattr(args, name, None) for name in DIRECT}
    given = {name: value for name, value in given.items() if value is not None}
    guidance = {
        "text": args.guidance,
        "style": args.style_guidance,
        "convention": args.guidance_convention,
        "rescale": args.guidance_rescale,
        "interval": None if args.guidance_interval is None else tuple(args.guidance_interval),
    }
    guidance = {name: value for name, value in guidance.items() if value is not None}
    if guidance.get("style") == "none":
        guidance["style"] = None
    usual = usual_guidance(config.sampling, image=bool(args.image))
    options = Options(**given, guidance=dataclasses.replace(usual, **guidance))
    return options.resolved(config)


def _warn(tokenizer: Tokenizer, entries: Sequence[Entry], negative: str) -> None:
    """Says on standard error what of a prompt the model will not see, and which prompt is empty."""
    limit = tokenizer.context_length - 2
    named = [(entry.prompt, f"{entry.where}: the prompt".lstrip(": ")) for entry in entries]
    for prompt, name in dict.fromkeys([*named, (negative, "the negative prompt")]):
        lost = tokenizer.lost_text(prompt)
        if lost is not None:
            _warning(f"{name} is longer than {limit} tokens; the model will not see {lost!r}")
    for prompt, name in dict.fromkeys(named):
        if not prompt.strip():
            _warning(f"{name} is empty; only the style images say what to show")


def _warning(text: str) -> None:
    print(f"stylecrafter: warning: {text}", file=sys.stderr)


def _read_start(path: Path | None, options: Resolved) -> UInt8[np.ndarray, "f h w 3"] | None:
    """Returns the frames to start from, in the size that is generated."""
    if path is None:
        if options.strength != 1.0:
            raise JobError("--strength needs --start, the video or picture to start from")
        return None
    if path.suffix.lower() in PICTURES:
        if options.height != options.width:
            raise JobError("starting from a picture needs a square size")
        picture = load_style_image(path, options.height)
        return np.repeat(picture[None], options.frames, axis=0)
    frames, _ = read_video(path, max_frames=options.frames)
    wanted = (options.frames, options.height, options.width)
    if frames.shape[:3] != wanted:
        came = frames.shape[:3]
        raise JobError(f"{path} has frames, height, width {came}; wanted at least {wanted}")
    return frames
