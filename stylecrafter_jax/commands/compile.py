"""`stylecrafter compile`: the programs of `generate`, kept on disk before they are used."""

import argparse
import sys
import time

import jax

from stylecrafter_jax import embedded
from stylecrafter_jax.checkpoints.bundle import load_bundle
from stylecrafter_jax.commands.arguments import read_mesh
from stylecrafter_jax.commands.generate import make_options
from stylecrafter_jax.generate import default_dtype
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.plan.tasks import generation
from stylecrafter_jax.plan.topology import mesh_axes, mesh_of, parse
from stylecrafter_jax.programs import keep_on_disk
from stylecrafter_jax.sharding import on_mesh, parse_mesh


def run(args: argparse.Namespace) -> int:
    """Compiles; prints the seconds that each program took, few where it was kept already."""
    folder = keep_on_disk()
    config, params = load_bundle(args.bundle or embedded.BUNDLE, expected=parameter_shapes)
    shapes = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in params.items()}
    if args.topology is None:
        mesh = read_mesh(args.mesh)
        axes = None if mesh is None else mesh.shape
    else:
        topology = parse(args.topology)
        axes = None if args.mesh is None else mesh_axes(topology, parse_mesh(args.mesh))
        mesh = mesh_of(topology, axes)
    usual = default_dtype() if args.topology is None else "bfloat16"
    task = generation(
        config,
        make_options(args, config),
        batch=args.batch_size,
        dtype=args.dtype or usual,
        param_dtype=args.param_dtype,
        styled=not args.no_style,
        params=shapes,
        parted=False,
        axes=axes,
    )
    for program in task.programs:
        begun = time.perf_counter()
        with on_mesh(mesh):
            program.traced(mesh).lower().compile()
        print(f"{program.name}: {time.perf_counter() - begun:.1f} s", flush=True)
    if folder is None:
        print("nothing is kept: the cache folder cannot be written", file=sys.stderr)
        return 1
    print(f"kept in {folder}")
    return 0
