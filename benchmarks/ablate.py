"""The paper's Tables 4 and 5 in miniature: variants of the demo model, trained and measured alike.

    python benchmarks/ablate.py BASE OUT [--steps 1500] [--temporal-steps 300] [--pictures 400]
                                [--clips 100] [--seeds 1] [--only NAME ...]

BASE is the demo world's base, a bundle before stage 1; an adapter in it is left out. OUT gets a
run, a bundle and an evaluation per variant and seed, the tables as `ablations.md` and
`ablations.json`, and pictures of the first seed: a row of `ablations_4.jpg` has the reference, the
variants in the table's order and a true picture, one of `ablations_5.jpg` the reference, a variant
in frames and a true frame. What is finished is not done again: the same command goes on.

Source: StyleCrafter (arXiv 2312.00330), Tables 4 and 5.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from PIL import Image

from stylecrafter_jax.checkpoints.bundle import BundleWriter, load_bundle
from stylecrafter_jax.files import write_json
from stylecrafter_jax.metrics.table import write_markdown
from stylecrafter_jax.models.networks import parameter_shapes

CONFIGS = Path(__file__).parents[1] / "configs"
CELL = 128  # pixels, of an evaluation's contact sheet
DRAWN = 8  # cases
STAGE1, STAGE2 = CONFIGS / "demo_stage1.py", CONFIGS / "demo_stage2.py"


class Variant(NamedTuple):
    """One row of a table.

    Attributes:
        title: the row's name in the paper.
        table: 4, measured on pictures, or 5, measured on clips.
        config: of its training; None measures the model that it starts from.
        start: another variant, or None for the base with an untrained adapter.
        settings: what differs in its training.
        adapter: what differs in its adapter.
    """

    title: str
    table: int
    config: Path | None = STAGE1
    start: str | None = None
    settings: tuple[str, ...] = ()
    adapter: dict[str, Any] = {}


VARIANTS = {
    "ours": Variant("ours", 4),
    "no_augmentation": Variant(
        "without data augmentation", 4, settings=("data.images=world:styled_same",)
    ),
    "attach": Variant("without dual cross-attention", 4, adapter={"fusion": "attach"}),
    "fixed_scale": Variant("without adaptive fusion", 4, adapter={"scale_predictor": None}),
    "no_temporal": Variant("without temporal adaption", 5, config=None, start="ours"),
    "joint": Variant("joint training", 5, config=STAGE2, settings=("stage=joint",)),
    "two_stage": Variant("two-stage (ours)", 5, config=STAGE2, start="ours"),
}


def main() -> None:
    """Trains and measures what is missing, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1_500, help="of stage 1")
    parser.add_argument("--temporal-steps", type=int, default=300, help="of stage 2")
    parser.add_argument("--pictures", type=int, default=400, help="cases of Table 4")
    parser.add_argument("--clips", type=int, default=100, help="cases of Table 5")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    for seed in range(args.seeds):
        for name in args.only:
            measure(name, seed, args)
    write_tables(args)
    draw_pictures(args)
    draw_clips(args)


def measure(name: str, seed: int, args: argparse.Namespace) -> None:
    """Trains a variant, unless its evaluation is there, and evaluates it."""
    variant, folder = VARIANTS[name], args.out / f"{name}_{seed}"
    if (folder / "metrics.json").exists():
        return
    bundle = trained(name, seed, args)
    of_pictures = variant.table == 4
    cases = ("--count", args.pictures, "--image") if of_pictures else ("--count", args.clips)
    run("evaluate", "--demo", "--bundle", bundle, "--out", folder, "--batch-size", 5, *cases)


def trained(name: str, seed: int, args: argparse.Namespace) -> Path:
    """Returns a variant's bundle, trained unless it is there."""
    variant = VARIANTS[name]
    bundle = args.out / "bundles" / f"{name}_{seed}"
    if bundle.exists():
        return bundle
    source = trained(variant.start, seed, args) if variant.start else plain(name, args)
    if variant.config is None:
        return source
    steps = args.steps if variant.config == STAGE1 else args.temporal_steps
    if name == "joint":  # the steps of both stages
        steps += args.steps
    folder = args.out / "runs" / f"{name}_{seed}"
    length = (f"train.steps={steps}", f"optimizer.decay_steps={steps}")
    set_ = (f"bundle={source}", *length, f"train.seed={seed}", *variant.settings)
    run("train", variant.config, "--out", folder, "--quiet", "--set", *set_)
    run("merge", folder, bundle)
    return bundle


def plain(name: str, args: argparse.Namespace) -> Path:
    """Returns the base with a variant's adapter in its config and no weights of one."""
    path = args.out / "bundles" / f"plain_{name}"
    if path.exists():
        return path
    parts = ("unet", "vae", "text_encoder", "image_encoder")
    config, params = load_bundle(args.base, expected=parameter_shapes, parts=parts)
    adapter = dataclasses.replace(config.adapter, **VARIANTS[name].adapter)
    config = dataclasses.replace(config, adapter=adapter)
    with BundleWriter(path, config) as writer:
        for parameter, value in params.items():
            writer.add(parameter, value)
        writer.add_files_of(args.base)
    return path


def run(*words: object) -> None:
    """Runs a command of ours, as a user would."""
    command = [sys.executable, "-m", "stylecrafter_jax", *map(str, words)]
    print("stylecrafter", *command[3:], file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


def write_tables(args: argparse.Namespace) -> None:
    """Writes the tables: intervals over the cases for one seed, deviations for several."""
    found = {
        name: [
            json.loads((args.out / f"{name}_{seed}" / "metrics.json").read_text())
            for seed in range(args.seeds)
            if (args.out / f"{name}_{seed}" / "metrics.json").exists()
        ]
        for name in VARIANTS
    }
    columns = (
        "content_accuracy",
        "content_leak",
        "style_retrieval_top1",
        "clip_temp",
        "motion_accuracy",
    )
    rows = []
    for name, results in found.items():
        if results:
            cells = [cell(results, column) for column in columns]
            rows.append((str(VARIANTS[name].table), VARIANTS[name].title, *cells))
    names = ("steps", "temporal_steps", "pictures", "clips", "seeds")
    settings = {name: getattr(args, name) for name in names}
    write_markdown(args.out / "ablations.md", ("table", "variant", *columns), rows, settings)
    write_json(args.out / "ablations.json", {"settings": settings, "results": found})
    print(args.out / "ablations.md")


def draw_pictures(args: argparse.Namespace) -> None:
    """Draws the first cases of Table 4: a row for each, a column for each variant."""
    sheets = list(read_sheets(args, 4))
    if sheets:
        columns = [sheets[0][:, :1], *(sheet[:, 1:2] for sheet in sheets), sheets[0][:, -1:]]
        write_grid(args.out / "ablations_4.jpg", np.concatenate(columns, axis=1)[:DRAWN])


def draw_clips(args: argparse.Namespace) -> None:
    """Draws the first cases of Table 5: for each a row for every variant."""
    sheets = list(read_sheets(args, 5))
    if sheets:
        rows = [sheet[case] for case in range(DRAWN // 2) for sheet in sheets]
        write_grid(args.out / "ablations_5.jpg", np.stack(rows))


def read_sheets(args: argparse.Namespace, table: int) -> Iterator[np.ndarray]:
    """Yields the cells of each variant's contact sheet: [rows, columns, h, w, 3]."""
    for name, variant in VARIANTS.items():
        path = args.out / f"{name}_0" / "sheet.png"
        if variant.table == table and path.exists():
            sheet = np.asarray(Image.open(path).convert("RGB"))
            yield rearrange(sheet, "(r h) (c w) z -> r c h w z", h=CELL, w=CELL)


def write_grid(path: Path, cells: np.ndarray) -> None:
    """Writes cells at the size they were generated at, which is half of a contact sheet's."""
    grid = rearrange(cells[:, :, ::2, ::2], "r c h w z -> (r h) (c w) z")
    Image.fromarray(grid).save(path, quality=80, optimize=True)
    print(path)


def cell(results: list[dict[str, Any]], column: str) -> str:
    """Returns one seed's value with its interval, or the mean and deviation of several seeds."""
    values = [result[column] for result in results if column in result]
    if not values:
        return "–"
    if len(values) == 1:
        low, high = results[0]["intervals"][column]
        return f"{values[0]:.3f} ({low:.3f} to {high:.3f})"
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
