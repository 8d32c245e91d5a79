"""The paper's Tables 4 and 5 in miniature: variants of the demo model, trained and measured alike.

    python benchmarks/ablate.py BASE OUT [--steps 1500] [--temporal-steps 300] [--count 100]
                                [--seeds 1] [--only NAME ...]

BASE is the demo world's base, a bundle before stage 1; an adapter in it is left out. OUT gets a
run, a bundle and an evaluation per variant and seed, and the tables: `ablations.md` and
`ablations.json`. What is finished is not done again: the same command goes on after a stop.

Source: StyleCrafter (arXiv 2312.00330), Tables 4 and 5.
"""

import argparse
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from stylecrafter_jax.checkpoints.bundle import BundleWriter, load_bundle
from stylecrafter_jax.metrics.table import write_json, write_markdown
from stylecrafter_jax.models.networks import parameter_shapes

CONFIGS = Path(__file__).parents[1] / "configs"
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
    parser.add_argument("--count", type=int, default=100, help="cases of an evaluation")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    for seed in range(args.seeds):
        for name in args.only:
            measure(name, seed, args)
    write_tables(args)


def measure(name: str, seed: int, args: argparse.Namespace) -> None:
    """Trains a variant, unless its evaluation is there, and evaluates it."""
    variant, folder = VARIANTS[name], args.out / f"{name}_{seed}"
    if (folder / "metrics.json").exists():
        return
    bundle = trained(name, seed, args)
    picture = ("--image",) if variant.table == 4 else ()
    run("evaluate", "--demo", "--bundle", bundle, "--out", folder, "--count", args.count, *picture)


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
    """Writes mean and, of several seeds, deviation of every variant that was measured."""
    found = {
        name: [
            json.loads((args.out / f"{name}_{seed}" / "metrics.json").read_text())
            for seed in range(args.seeds)
            if (args.out / f"{name}_{seed}" / "metrics.json").exists()
        ]
        for name in VARIANTS
    }
    columns = ("content_accuracy", "style_retrieval_top1", "clip_temp", "motion_accuracy")
    rows = []
    for name, results in found.items():
        if results:
            cells = [cell([result.get(column) for result in results]) for column in columns]
            rows.append((str(VARIANTS[name].table), VARIANTS[name].title, *cells))
    settings = {name: getattr(args, name) for name in ("steps", "temporal_steps", "count", "seeds")}
    write_markdown(args.out / "ablations.md", ("table", "variant", *columns), rows, settings)
    write_json(args.out / "ablations.json", {"settings": settings, "results": found})
    print(args.out / "ablations.md")


def cell(values: list[float | None]) -> str:
    """Returns the mean of some values, with their deviation if there are several."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "–"
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) == 1:
        return f"{mean:.3f}"
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in numbers) / (len(numbers) - 1))
    return f"{mean:.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
