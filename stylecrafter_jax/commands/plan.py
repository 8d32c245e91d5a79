"""`stylecrafter plan`: what a task takes on chips that need not be here."""

import argparse
import json
import sys
from pathlib import Path

from stylecrafter_jax.checkpoints.bundle import read_config
from stylecrafter_jax.commands.convert import read_model
from stylecrafter_jax.commands.generate import make_options
from stylecrafter_jax.config import ConfigError, ModelConfig
from stylecrafter_jax.plan import report
from stylecrafter_jax.plan.compiled import QUICK
from stylecrafter_jax.plan.table import table
from stylecrafter_jax.plan.tasks import Task, generation, training
from stylecrafter_jax.plan.topology import Topology, mesh_axes, parse
from stylecrafter_jax.sharding import AXES, parse_mesh
from stylecrafter_jax.train.experiment import Experiment, load_experiment, override

EXIT_DOES_NOT_FIT = 4
RELEASED = "the released 320x512 model is planned for"


def run(args: argparse.Namespace) -> int:
    """Prints the plan; the exit status says whether it fits."""
    topology = parse(args.topology)
    experiment = _experiment(args)
    config = _model(args, experiment)
    if args.price is not None and args.price < 0:
        raise ValueError(f"--price must be at least 0, got {args.price:g}")
    axes = _axes(args, experiment, topology)
    plan = report.make_plan(
        _task(args, experiment, config, axes),
        topology,
        axes=axes,
        compiler_options=None if args.full_effort else QUICK,
        compiling=not args.no_compile,
        progress=lambda name: _note(f"{topology.name}: {name} ...", args),
    )
    if args.json:
        print(json.dumps(plan.to_json(args.price), indent=1))
    else:
        print("\n".join(table(plan, args.price)))
    return 0 if plan.fits else EXIT_DOES_NOT_FIT


def _experiment(args: argparse.Namespace) -> Experiment | None:
    if args.config is None or args.config.suffix == ".json":
        if args.settings:
            raise ConfigError("--set changes a training config: give one with --config")
        return None
    return override(load_experiment(args.config), args.settings)


def _model(args: argparse.Namespace, experiment: Experiment | None) -> ModelConfig:
    """Returns the model: the bundle's that is asked for, or that the run would start from."""
    if args.bundle is not None:
        return read_config(args.bundle)
    if args.config is not None and experiment is None:
        return read_model(args.config)
    if experiment is not None and Path(experiment.bundle).is_dir():
        return read_config(experiment.bundle)
    missing = "" if experiment is None else f"the bundle {experiment.bundle} is not here: "
    _note(missing + RELEASED, args)
    return ModelConfig()


def _task(
    args: argparse.Namespace,
    experiment: Experiment | None,
    config: ModelConfig,
    axes: dict[str, int] | None,
) -> Task:
    name = args.task or ("generate" if experiment is None else experiment.stage)
    if name == "generate":
        options = make_options(args, config)
        return generation(
            config,
            options,
            batch=args.batch_size,
            dtype=args.dtype or "bfloat16",
            param_dtype=args.param_dtype or "bfloat16",
            styled=not args.no_style,
            axes=axes,
        )
    if experiment is None:
        raise ConfigError(f"--task {name} needs the run's config: --config configs/{name}_*.py")
    if experiment.stage != name:
        raise ConfigError(f"--task {name}, but {args.config} is a config of {experiment.stage}")
    return training(experiment, config)


def _axes(
    args: argparse.Namespace, experiment: Experiment | None, topology: Topology
) -> dict[str, int] | None:
    """Returns the mesh of all chips; None where each of them generates for itself."""
    trains = experiment is not None and args.task != "generate"
    if args.mesh is None and not trains:
        return None
    given = {} if args.mesh is None else parse_mesh(args.mesh)
    if args.mesh is None and experiment is not None:  # the run's own
        sizes = {axis: getattr(experiment.mesh, axis) for axis in AXES}
        given = {axis: size for axis, size in sizes.items() if size is not None}
    return mesh_axes(topology, given)


def _note(line: str, args: argparse.Namespace) -> None:
    if not args.quiet:
        print(line, file=sys.stderr)
