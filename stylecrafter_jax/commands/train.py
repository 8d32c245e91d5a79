"""`stylecrafter train` and `stylecrafter merge`."""

import argparse
import logging
import sys
from pathlib import Path

from stylecrafter_jax.commands import statuses
from stylecrafter_jax.commands.arguments import add_processes, start_processes

EPILOG = """\
Run the same again to go on after a stop: the run continues where its newest checkpoint is, and
ends as if it had never been stopped. SIGTERM and Ctrl-C finish the step, save and leave.

On several hosts run the same on each, with a RUN that all of them share. A signal to one stops all
after the same step.

exit status: 0 all steps are done, 3 stopped and saved, 1 an error (one line says which), 2 usage,
4 another process of the run is gone (run all of them again to go on); where JAX's runtime sees
that first, it ends the process by SIGABRT

example:
  stylecrafter train configs/stage1_t2i.py --out runs/stage1 --set data.images=pictures
  stylecrafter train configs/stage1_t2i.py --out runs/stage1 --set data.images=pictures --replay 812
  stylecrafter merge runs/stage1 bundles/stage1
"""


def add_parser(commands) -> None:
    """Adds `train` and `merge` to the subcommands."""
    parser = commands.add_parser(
        "train",
        help="train a stage of the model",
        description="Trains what a config describes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_experiment(parser)
    add("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    add("--resume", action="store_true", help="refuse to begin anew if RUN holds no run")
    add("--quiet", action="store_true", help="no progress line")
    add(
        "--replay",
        type=int,
        metavar="STEP",
        help="change nothing; do that step again, and show the loss of each of its records",
    )
    add("--profile", metavar="A:B", help="profile steps A to B of this start into RUN/profile")
    add("--wandb", metavar="PROJECT", help="send the metrics to Weights & Biases as well")
    add_processes(parser)
    parser.set_defaults(run=_train)

    parser = commands.add_parser("merge", help="a training run -> bundle")
    add = parser.add_argument
    add("source", type=Path, metavar="RUN", help="the run's folder")
    add("out", type=Path, help="the bundle folder to write")
    add("--weights", choices=("ema", "last"), default="ema", help="the moving average, or the last")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of all weights (what they have: float32 of those that were trained)",
    )
    add("--overwrite", action="store_true", help="replace an existing bundle")
    parser.set_defaults(run=_merge)


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """Adds the config and `--set`, which `experiment.override` takes."""
    add = parser.add_argument
    add("config", type=Path, help="a Python file with get_config(), such as those in configs/")
    add(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="replace settings, such as train.steps=10",
    )


def _train(args: argparse.Namespace) -> int:
    """Trains; see `EPILOG` for the status."""
    from stylecrafter_jax.commands.several import failing_at_once, losing_none
    from stylecrafter_jax.processes import leads
    from stylecrafter_jax.programs import keep_on_disk
    from stylecrafter_jax.train.experiment import load_experiment, override
    from stylecrafter_jax.train.loop import train
    from stylecrafter_jax.train.profiling import parse_span
    from stylecrafter_jax.train.replay import replay
    from stylecrafter_jax.train.runs import read_run
    from stylecrafter_jax.train.wandb_log import check_wandb

    span = None if args.profile is None else parse_span(args.profile)
    if args.wandb is not None:
        check_wandb()
    start_processes(args)
    keep_on_disk()
    # What Orbax's threads log with a traceback is raised as well, and becomes one line.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with losing_none(), failing_at_once():
        experiment = override(load_experiment(args.config), args.settings)
        if args.resume or args.replay is not None:
            read_run(args.out)
        if args.replay is not None:
            found = replay(experiment, args.out, args.replay)
            if leads():
                print("\n".join(found.lines()))
            return 0
        outcome = train(
            experiment, args.out, progress=not args.quiet, profile=span, wandb=args.wandb
        )
    if outcome.finished:
        if leads():
            print(args.out)
        return 0
    if leads():
        print(
            f"stopped after step {outcome.step} of {experiment.train.steps}; run the same again "
            "to go on",
            file=sys.stderr,
        )
    return statuses.STOPPED


def _merge(args: argparse.Namespace) -> int:
    """Writes the newest checkpoint of a run, with the bundle it started from, as a bundle."""
    import jax.numpy as jnp

    from stylecrafter_jax.train.runs import write_bundle

    dtype = None if args.dtype is None else jnp.dtype(args.dtype)
    write_bundle(args.source, args.out, which=args.weights, dtype=dtype, overwrite=args.overwrite)
    print(args.out)
    return 0
