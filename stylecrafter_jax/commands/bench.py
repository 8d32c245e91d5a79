"""`stylecrafter bench`: what this machine does, and two ways of doing it in one run."""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from stylecrafter_jax import embedded
from stylecrafter_jax.bench.kernels import kernel_programs
from stylecrafter_jax.bench.programs import runnable
from stylecrafter_jax.bench.timing import Runnable, Timed, timed
from stylecrafter_jax.checkpoints.bundle import read_config
from stylecrafter_jax.checkpoints.convert import export_original, import_original
from stylecrafter_jax.commands.convert import read_model
from stylecrafter_jax.commands.generate import make_options
from stylecrafter_jax.config import ConfigError, ModelConfig
from stylecrafter_jax.files import write_text
from stylecrafter_jax.foreign import JSONError, parse_json
from stylecrafter_jax.generate import default_dtype
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.plan.chips import chip_here
from stylecrafter_jax.plan.tasks import Program, Task, generation, training
from stylecrafter_jax.train.experiment import load_experiment, override


def run(args: argparse.Namespace) -> int:
    """Times what is asked for; prints a table, or one JSON object."""
    sides = _sides(args)
    found: list[list[Timed]] = []
    if args.what == "import":
        if len(sides) > 1:
            raise ConfigError("bench import has nothing to compare")
        found = [timed([_import(args)], args.repeat)]
    else:
        programs = [(_programs(side), label) for label, side in sides]
        for i in range(len(programs[0][0])):
            turns = [runnable(of[i], label) for of, label in programs]
            found.append(timed(turns, args.repeat))
            if not args.quiet:
                print(f"{found[-1][0].name}: timed", file=sys.stderr)
    content = _content(args, found, [label for label, _ in sides])
    if args.out is not None:
        write_text(args.out, json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1) if args.json else "\n".join(_table(content)))
    return 0


def _sides(args: argparse.Namespace) -> list[tuple[str, argparse.Namespace]]:
    """Returns the settings to time: those given; or two or more that differ in one of them."""
    if args.compare is None:
        return [("", args)]
    name, equals, values = args.compare.partition("=")
    field, several = name.replace("-", "_"), values.split(",")
    if not equals or len(several) < 2:
        raise ConfigError(f"--compare wants NAME=ONE,OTHER, got {args.compare!r}")
    if not hasattr(args, field) or field in ("what", "compare", "repeat", "out", "json"):
        raise ConfigError(f"--compare: there is no setting {name!r} to compare")
    sides = []
    for value in several:
        side = copy.copy(args)
        try:
            chosen = parse_json(value)
        except JSONError:
            chosen = value
        setattr(side, field, chosen)
        sides.append((f"{name}={value}", side))
    return sides


def _programs(args: argparse.Namespace) -> list[Program]:
    """Returns the programs of one side."""
    dtype = args.dtype or default_dtype()
    config = _model(args)
    if args.what == "train":
        if args.config is None or args.config.suffix == ".json":
            raise ConfigError("bench train needs a run's config, such as configs/stage1_t2i.py")
        settings = [f"train.compute_dtype={dtype}", *args.settings]
        return training(override(load_experiment(args.config), settings), config).programs
    options = make_options(args, config)
    if args.what == "kernels":
        factor = config.vae.downsampling
        return kernel_programs(
            config.unet,
            frames=options.frames,
            height=options.height // factor,
            width=options.width // factor,
            impl=args.impl,
            dtype=dtype,
            gradients=args.gradients,
        )
    task: Task = generation(
        config,
        options,
        batch=args.batch_size,
        dtype=dtype,
        param_dtype=args.param_dtype or dtype,
        styled=not args.no_style,
        impl=args.impl,
    )
    names = {"unet": ("step",), "decode": ("decoder",)}.get(args.what)
    return [p for p in task.programs if names is None or p.name in names]


def _model(args: argparse.Namespace) -> ModelConfig:
    if args.bundle is not None:
        return read_config(args.bundle)
    if args.config is not None and args.config.suffix == ".json":
        return read_model(args.config)
    return ModelConfig() if args.full_size else read_config(embedded.BUNDLE)


def _import(args: argparse.Namespace) -> Runnable:
    """Returns the import of a bundle's weights from the original's files, which are made here."""
    bundle = args.bundle or embedded.BUNDLE
    config, scratch = read_config(bundle), tempfile.TemporaryDirectory()
    folder = Path(scratch.name)
    files = export_original(bundle, folder, expected=parameter_shapes)
    named = {path.name: path for path in files}
    size = sum(path.stat().st_size for path in files)
    given = {
        "model_ckpt": named["model.ckpt"],
        "adapter": named.get("adapter_v1.pth"),
        "temporal": named.get("temporal_v1_1.pth"),
        "open_clip": named.get("open_clip_pytorch_model.bin"),
    }

    def again() -> None:
        assert scratch is not None  # the folder lives as long as this function
        import_original(
            folder / "bundle",
            config=config,
            expected=parameter_shapes(config),
            progress=False,
            overwrite=True,
            **given,
        )

    return Runnable(f"import of {len(files)} files", again, bytes=size)


def _content(
    args: argparse.Namespace, found: Sequence[Sequence[Timed]], labels: Sequence[str]
) -> dict[str, Any]:
    """Returns everything that was measured, as JSON would have it."""
    device, chip = jax.devices()[0], chip_here()
    rows = []
    for turns in found:
        for each in turns:
            rate = each.flops / each.median
            rows.append(
                {
                    "name": each.name,
                    "compile_seconds": each.compile_seconds,
                    "median_seconds": each.median,
                    "seconds": each.seconds,
                    "flops": each.flops,
                    "flops_per_second": rate,
                    "share_of_peak": None if chip is None else rate / chip.flops,
                    "bytes": each.bytes,
                    # How many times as long as the first side it takes.
                    "ratio": each.median / turns[0].median,
                }
            )
    return {
        "what": args.what,
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "dtype": str(jnp.dtype(args.dtype)) if args.dtype else "the platform's",
        "repeat": args.repeat,
        "compared": list(labels) if len(labels) > 1 else None,
        "command": "stylecrafter " + " ".join(sys.argv[1:]),
        "rows": rows,
    }


def _table(content: dict[str, Any]) -> list[str]:
    """Returns the lines that a user reads."""
    lines = [
        f"bench {content['what']} on {content['device']} ({content['platform']}), median of "
        f"{content['repeat']} after one run to warm up",
        f"  {'program':58} {'compile s':>9} {'median s':>10} {'GFLOP/s':>9} {'of peak':>8}"
        + (f" {'ratio':>7}" if content["compared"] else ""),
    ]
    for row in content["rows"]:
        share = row["share_of_peak"]
        lines.append(
            f"  {row['name']:58} {row['compile_seconds']:9.2f} {row['median_seconds']:10.4f} "
            f"{row['flops_per_second'] / 1e9:9.1f} "
            + (f"{'-':>8}" if share is None else f"{100 * share:7.1f}%")
            + (f" {row['ratio']:7.3f}" if content["compared"] else "")
        )
    return lines
