"""`stylecrafter evaluate`: videos of a list, measured; one table and a contact sheet."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from stylecrafter_jax.commands import generate
from stylecrafter_jax.commands.interruptible import interruptible
from stylecrafter_jax.jobs import JobError, check_entries, read_list, sha256
from stylecrafter_jax.media.images import load_style_image
from stylecrafter_jax.media.video import write_frames
from stylecrafter_jax.metrics.ledger import Ledger, fingerprint
from stylecrafter_jax.metrics.measures import METRICS, Case, Measure, choose_names, make_measures
from stylecrafter_jax.metrics.report import write_report
from stylecrafter_jax.metrics.sheet import sheet, shown
from stylecrafter_jax.metrics.videos import find_videos, is_still, read_frames, video_hash
from stylecrafter_jax.outputs import versions

# Arguments that say how to generate, and so contradict --videos, where their names differ.
SPELLED = {"negative_prompt": "negative"}
GUIDANCE = (
    *("guidance", "style_guidance", "guidance_convention", "guidance_rescale"),
    "guidance_interval",
)


class Item(NamedTuple):
    """A finished video of a list's entry."""

    entry: int
    prompt: str
    styles: tuple[Path, ...]
    path: Path


def run(args: argparse.Namespace) -> int:
    """Generates what is not there yet, measures what is not measured yet, and reports.

    Standard output gets the path of each video that `generate` made or found, then those of the
    table and the sheet.
    """
    for name in ("bundle", "list"):
        if getattr(args, name) is None:
            raise JobError(f"wanted --{name}, or --demo for the demo world's own cases")
    if args.count is not None:
        raise JobError("--count is for --demo")
    asked = None if args.metrics is None else args.metrics.split(",")
    items, hashes = _items(args)
    still = args.image or args.frames == 1 or all(is_still(item.path) for item in items)
    names = choose_names(asked, still=still, dino=args.dino is not None)
    if args.flow is not None and not any(name.startswith("warping_") for name in names):
        raise JobError("--flow is for the warping error, which is not among the metrics")
    if args.dino is not None and "dino_style" not in names:
        raise JobError("--dino is for dino_style, which is not among the metrics")
    measures = make_measures(names, args.bundle, flow=args.flow, dino=args.dino)
    args.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(args.out / "items.jsonl")
    if args.videos is None:
        generate.make(_generation(args))
    rows = _measure(items, measures, ledger, hashes, quiet=args.quiet)
    made = f"made by the bundle {args.bundle.name}; a JSON file beside each says how"
    notes = {
        "videos": made if args.videos is None else str(args.videos),
        "list": f"{args.list.name}, SHA-256 {sha256(args.list)}",
        **{", ".join(METRICS[n].title for n in m.names): m.identity for m in measures},
        "program": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "sheet": [items[i].path.name for i in shown(len(items))],
    }
    chosen = {name: METRICS[name] for name in names}
    paths = write_report(args.out, rows, chosen, notes)
    for path in [*paths, _write_sheet(args.out / "sheet.png", items)]:
        print(path, flush=True)
    return 0


def _items(args: argparse.Namespace) -> tuple[list[Item], Mapping[Path, str]]:
    """Returns the videos to measure, made already or not, and the hashes of all references."""
    if args.videos is None:
        jobs = generate.make_jobs(_generation(args))
        entries = [job.entry for job in jobs]
        paths = [job.path for job in jobs]
    else:
        _refuse_generation(args)
        listed = read_list(args.list)
        if args.samples < 1:
            raise JobError(f"--samples must be at least 1, got {args.samples}")
        paths = find_videos(args.videos, listed, args.samples)
        entries = [entry for entry in listed for _ in range(args.samples)]
    items = [
        Item(i // args.samples, entry.prompt, entry.styles, path)
        for i, (entry, path) in enumerate(zip(entries, paths, strict=True))
    ]
    return items, check_entries(entries)


def _generation(args: argparse.Namespace) -> argparse.Namespace:
    """Returns the arguments of `generate` that make the videos of an evaluation."""
    absent = ("prompt", "style", "style_weights", "start", "strength")
    own = {**dict.fromkeys(absent), "out": args.out / "videos"}
    return argparse.Namespace(**{**vars(args), **own})


def _refuse_generation(args: argparse.Namespace) -> None:
    for name in (*generate.DIRECT, *GUIDANCE, "dtype", "param_dtype", "format"):
        if getattr(args, name, None) not in (None, False):
            option = SPELLED.get(name, name).replace("_", "-")
            raise JobError(f"--videos brings finished videos; leave out --{option}")


def _measure(
    items: Sequence[Item],
    measures: Sequence[Measure],
    ledger: Ledger,
    hashes: Mapping[Path, str],
    *,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Returns each item's scores; those that are not known yet are measured and noted."""
    rows, known = [], 0
    for item in tqdm(items, desc="measuring", unit="video", disable=quiet):
        video, references = video_hash(item.path), [hashes[style] for style in item.styles]
        prints = {
            name: fingerprint(name, measure.identity, video, item.prompt, references)
            for measure in measures
            for name in measure.names
        }
        found = {name: ledger.find(printed) for name, printed in prints.items()}
        scores = {name: value for name, value in found.items() if value is not None}
        about = {"entry": item.entry, "video": str(item.path), "prompt": item.prompt}
        if len(scores) < len(prints):
            scores = _scores(item, measures, scores)
            ledger.add(about, scores, prints)
        else:
            known += 1
        rows.append({**about, "scores": scores})
    if known and not quiet:
        print(f"{known} of {len(items)} videos are already measured", file=sys.stderr)
    return rows


def _scores(
    item: Item, measures: Sequence[Measure], known: Mapping[str, float]
) -> dict[str, float]:
    case = _case(item)
    scores = dict(known)
    for measure in measures:
        names = [name for name in measure.names if name not in known]
        few = [name for name in names if METRICS[name].frames > len(case.frames)]
        if few:
            raise JobError(f"{item.path} has one frame, and {few[0]} compares adjacent ones")
        if names:
            try:
                scores |= interruptible(lambda stop, m=measure, n=names: m.score(case, n))
            except ValueError as error:
                raise JobError(f"{item.path}: {error}") from error
    return {name: scores[name] for measure in measures for name in measure.names}


def _case(item: Item) -> Case:
    references = [load_style_image(style) for style in item.styles]
    return Case(read_frames(item.path), item.prompt, references)


def _write_sheet(path: Path, items: Sequence[Item]) -> Path:
    write_frames(sheet([_case(items[i]) for i in shown(len(items))])[None], path, fps=1)
    return path
