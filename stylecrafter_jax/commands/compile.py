"""`stylecrafter compile`: the programs of `generate`, kept on disk before they are used."""

import argparse
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, SingleDeviceSharding

from stylecrafter_jax import embedded
from stylecrafter_jax.checkpoints.bundle import load_bundle
from stylecrafter_jax.commands.generate import make_options
from stylecrafter_jax.generate import default_dtype
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.plan.tasks import Program, generation
from stylecrafter_jax.plan.topology import devices, parse
from stylecrafter_jax.programs import keep_on_disk


def run(args: argparse.Namespace) -> int:
    """Compiles; prints the seconds that each program took, few where it was kept already."""
    folder = keep_on_disk()
    config, params = load_bundle(args.bundle or embedded.BUNDLE, expected=parameter_shapes)
    shapes = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in params.items()}
    device = None if args.topology is None else devices(parse(args.topology))[0]
    usual = default_dtype() if device is None else "bfloat16"
    task = generation(
        config,
        make_options(args, config),
        batch=args.batch_size,
        dtype=args.dtype or usual,
        param_dtype=args.param_dtype,
        styled=not args.no_style,
        params=shapes,
        parted=False,
    )
    for program in task.programs:
        begun = time.perf_counter()
        _compile(program, device)
        print(f"{program.name}: {time.perf_counter() - begun:.1f} s", flush=True)
    if folder is None:
        print("nothing is kept: the cache folder cannot be written", file=sys.stderr)
        return 1
    print(f"kept in {folder}")
    return 0


def _compile(program: Program, device: Any) -> None:
    """Compiles a program as `generate` would, here or for a device elsewhere."""
    if device is None:
        program.jitted.lower(*program.args).compile()
        return
    where = SingleDeviceSharding(device)
    args = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), program.args
    )
    with jax.set_mesh(Mesh(np.array([device]), ("device",), axis_types=(AxisType.Auto,))):
        program.jitted.lower(*args).compile()
