"""Arguments of `stylecrafter plan`, `compile` and `bench`."""

import argparse
from pathlib import Path

from stylecrafter_jax.commands.arguments import add_mesh, add_sampling, add_size, add_speed


def add_parser(commands) -> None:
    """Adds the three subcommands."""
    _add_plan(commands)
    _add_compile(commands)
    _add_bench(commands)


def _add_generation(parser: argparse.ArgumentParser) -> None:
    """Adds what decides the programs of generation."""
    parser.add_argument("--no-style", action="store_true", help="generate without references")
    parser.add_argument("--image", action="store_true", help="generate pictures")
    add_size(parser)
    add_sampling(parser)
    add_speed(parser)


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    """Adds a run's config, which need not be given, or a model's."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="a run's Python file, or a model's JSON file")
    add("--set", dest="settings", nargs="+", action="extend", default=[], metavar="NAME=VALUE")


def _add_plan(commands) -> None:
    parser = commands.add_parser(
        "plan",
        help="memory, operations and least time of a task on chips that need not be here",
        usage="%(prog)s --topology CHIP:SIZE [--config FILE] [options]",
        description="Compiles the programs of a task for TPUs and prints what a chip needs and can "
        "do; for GPUs, counts their operations and weights. Exit status 4: it does not fit.",
    )
    add = parser.add_argument
    add("--topology", required=True, metavar="CHIP:SIZE", help="such as v5e:4x4, v5p:2x2x1, h200:8")
    add("--task", metavar="NAME", help="generate, stage1, stage2 (the config's; else generate)")
    _add_experiment(parser)
    add("--bundle", type=Path, metavar="DIR", help="the model (the config's, the released one)")
    add(
        "--mesh",
        metavar="AXES",
        help="such as data=2,frames=4 (training data; else each chip alone)",
    )
    add("--price", type=float, metavar="X", help="of a chip for an hour")
    add("--json", action="store_true", help="one JSON object")
    add("--no-compile", action="store_true", help="count for TPU as well: seconds, not minutes")
    add(
        "--full-effort",
        action="store_true",
        help="compile as for a run: five times slower",
    )
    add("--quiet", action="store_true", help="nothing but warnings and errors on standard error")
    _add_generation(parser)
    parser.set_defaults(run=_plan)


def _add_compile(commands) -> None:
    parser = commands.add_parser(
        "compile",
        help="compile the programs of generate ahead, and keep them on disk",
        description="Takes the options of generate that decide its programs.",
    )
    add = parser.add_argument
    add("--bundle", type=Path, metavar="DIR", help="the model (the embedded demo model)")
    add("--topology", metavar="CHIP:SIZE", help="for a TPU that is not here, such as v5e:1x1")
    add_mesh(parser)
    _add_generation(parser)
    parser.set_defaults(run=_compile)


def _add_bench(commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="time the programs of a task on this machine",
        description="Times programs with random weights: compile time, median after a warm-up, "
        "operations a second and share of the chip's peak.",
    )
    add = parser.add_argument
    add("what", choices=("unet", "sample", "train", "kernels", "decode", "import"))
    add("--full-size", action="store_true", help="the released model (the embedded demo model)")
    _add_experiment(parser)
    add("--bundle", type=Path, metavar="DIR", help="take this model's sizes")
    add("--repeat", type=int, default=5, metavar="N", help="timed runs (5)")
    add("--compare", metavar="NAME=A,B", help="in turn, with one setting changed: impl=xla,pallas")
    add("--impl", choices=("reference", "xla", "pallas"), help="of the attentions (the fastest)")
    add("--gradients", action="store_true", help="kernels: forward and backward")
    add("--json", action="store_true", help="one JSON object")
    add("--out", type=Path, metavar="FILE", help="write it to a file as well")
    add("--quiet", action="store_true", help="nothing but warnings and errors on standard error")
    _add_generation(parser)
    parser.set_defaults(run=_bench)


def _plan(args: argparse.Namespace) -> int:
    from stylecrafter_jax.commands.plan import run

    return run(args)


def _compile(args: argparse.Namespace) -> int:
    from stylecrafter_jax.commands.compile import run

    return run(args)


def _bench(args: argparse.Namespace) -> int:
    from stylecrafter_jax.commands.bench import run

    return run(args)
