"""`stylecrafter data`: look at training data, pack it into shards, or encode it."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stylecrafter_jax.commands import encode
from stylecrafter_jax.commands.encode import refusals, written
from stylecrafter_jax.data.captions import RULES

if TYPE_CHECKING:  # the parser is built for every command, so the readers are imported when used
    from stylecrafter_jax.data.sources import Source
    from stylecrafter_jax.data.transforms import Pictures, Transform

SOURCE_HELP = (
    "a folder of pictures or videos, a CSV or JSONL table, a .tar or ArrayRecord file or a folder "
    "of them, or tfds:NAME"
)
SAMPLE = 1000
# A world's scenes are drawn for it, so that fewer say enough.
WORLD_SAMPLE = 200


def add_parser(commands) -> None:
    """Adds `data inspect`, `data pack` and `data encode` to the subcommands."""
    data = commands.add_parser("data", help="look at training data, pack it, encode it")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    parser = actions.add_parser("inspect", help="counts, sizes, problems, a contact sheet")
    add = parser.add_argument
    _add_source(parser, f"{SOURCE_HELP}, or the demo world's world:KIND[:COUNT[:SEED]]")
    add("--sheet", type=Path, metavar="PNG", help="write style crop, target and caption in rows")
    add("--rows", type=int, default=8, metavar="N", help="rows of the sheet (8)")
    add("--sample", type=int, metavar="N", help="records to look at (1000); 0: all")
    add("--clean", choices=tuple(RULES), default="clean", help="how captions are cleaned (clean)")
    add("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="(512 512)")
    add("--frames", type=int, default=1, metavar="N", help="frames a clip must have (1)")
    add("--seed", type=int, default=0, metavar="N", help="of the sheet's crops (0)")
    add("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=_inspect)

    parser = actions.add_parser("pack", help="any source -> ArrayRecord shards")
    add = parser.add_argument
    _add_source(parser)
    add("out", type=Path, help="the folder to write; run again to go on after an interruption")
    add("--shard-size", type=int, default=1000, metavar="N", help="records per shard (1000)")
    add("--threads", type=int, default=4, metavar="N", help="shards written at a time (4)")
    add("--min-side", type=int, default=8, metavar="PIXELS", help="refuse smaller ones (8)")
    add("--max-aspect", type=float, default=16.0, metavar="X", help="refuse narrower ones (16)")
    add("--frames", type=int, default=1, metavar="N", help="frames a clip must have (1)")
    add("--no-decode", action="store_true", help="do not look into the files, only at captions")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_pack)
    encode.add_parser(actions)


def _add_source(parser: argparse.ArgumentParser, text: str = SOURCE_HELP) -> None:
    add = parser.add_argument
    add("source", help=text)
    add("--captions", type=Path, metavar="FILE", help="the caption table, if not in the folder")
    add("--videos", type=Path, metavar="DIR", help="the clips of a WebVid table")
    add("--split", default="train", metavar="NAME", help="of TensorFlow Datasets (train)")
    add("--image-feature", metavar="NAME", help="of TensorFlow Datasets")
    add("--caption-feature", metavar="NAME", help="of TensorFlow Datasets")


def _open(args: argparse.Namespace) -> "Source":
    from stylecrafter_jax.data.features import is_features
    from stylecrafter_jax.data.records import DataError
    from stylecrafter_jax.data.sources import open_source

    if is_features(args.source):
        raise DataError(f"{args.source} holds features, not pictures or videos")
    return open_source(
        args.source,
        captions=args.captions,
        videos=args.videos,
        split=args.split,
        image_feature=args.image_feature,
        caption_feature=args.caption_feature,
    )


def _inspect(args: argparse.Namespace) -> int:
    """Prints a survey and writes the sheet; returns 1 if no record can be used."""
    import numpy as np
    from tqdm import tqdm

    from stylecrafter_jax.data.pack import Requirements
    from stylecrafter_jax.data.survey import describe, survey
    from stylecrafter_jax.data.transforms import Transform
    from stylecrafter_jax.tokenizer import Tokenizer
    from stylecrafter_jax.world.source import WORLD

    if args.source.startswith(WORLD):
        return _inspect_world(args)
    source = _open(args)
    transform = Transform(
        tokenizer=Tokenizer.load(), size=tuple(args.size), frames=args.frames, captions=args.clean
    )
    sample = _count(args.sample, SAMPLE, len(source))
    indices = np.linspace(0, len(source) - 1, sample).round().astype(int).tolist()
    with tqdm(total=sample, unit="record", leave=False) as bar:
        found = survey(
            source,
            indices,
            transform.tokenizer,
            captions=args.clean,
            requirements=Requirements(min_frames=args.frames),
            progress=bar.update,
        )
    print(json.dumps(dataclasses.asdict(found)) if args.json else describe(found))
    if not found.images + found.videos:
        return 1
    if args.sheet:
        _write_sheet(_examples(source, transform, args.rows, args.seed), args.sheet)
    return 0


def _inspect_world(args: argparse.Namespace) -> int:
    """Prints what a source of the demo world draws and how fast, and writes the sheet."""
    import time

    from stylecrafter_jax.world.source import open_world, shown

    source = open_world(args.source)
    count = _count(args.sample, WORLD_SAMPLE, len(source))
    shown(source[0])  # reads the drawings
    begun = time.perf_counter()
    pixels = sum(len(shown(source[i]).pixels) for i in range(count))
    rate = count / (time.perf_counter() - begun)
    found = {
        "name": source.name,
        "records": len(source),
        "drawn": count,
        "frames": pixels // count,
        "records_per_second": rate,
    }
    text = (
        f"{source.name}: {len(source)} scenes of {pixels // count} frames, drawn as they are "
        f"read, each with a reference: {rate:.0f} a second in one thread"
    )
    print(json.dumps(found) if args.json else text)
    if args.sheet:
        _write_sheet([shown(source[i]) for i in range(min(args.rows, len(source)))], args.sheet)
    return 0


def _count(asked: int | None, usual: int, records: int) -> int:
    """Returns how many records to look at; 0 asks for all."""
    return min(usual if asked is None else asked or records, records)


def _write_sheet(rows: list["Pictures"], path: Path) -> None:
    from stylecrafter_jax.data.survey import sheet
    from stylecrafter_jax.media.video import write_frames

    write_frames(sheet(rows)[None], path, fps=1)
    print(f"wrote {path}", file=sys.stderr)


def _examples(source: "Source", transform: "Transform", rows: int, seed: int) -> list["Pictures"]:
    """Returns examples of the first usable records in a random order."""
    import numpy as np

    from stylecrafter_jax.data.records import BadRecord, DataError

    rng = np.random.default_rng(seed)
    examples = []
    for index in rng.permutation(len(source)).tolist():
        if len(examples) == rows:
            break
        try:
            examples.append(transform.pictures(source[index], rng))
        except BadRecord:  # the survey has told of it
            continue
    if not examples:
        raise DataError(f"no record of {source.name} can be shown")
    return examples


def _pack(args: argparse.Namespace) -> int:
    """Packs, and says what was refused and why."""
    from tqdm import tqdm

    from stylecrafter_jax.data.pack import Requirements, pack

    source = _open(args)
    requirements = Requirements(
        min_side=args.min_side,
        max_aspect=args.max_aspect,
        min_frames=args.frames,
        decode=not args.no_decode,
    )
    with tqdm(total=len(source), unit="record", disable=args.quiet) as bar:
        report = pack(
            source,
            args.out,
            shard_size=args.shard_size,
            requirements=requirements,
            threads=args.threads,
            progress=bar.update,
        )
    print(*refusals(report, args.out), written(report, args.out), sep="\n")
    return 0
