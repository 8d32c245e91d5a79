"""Arguments that several subcommands share: how to generate, and on how many hosts."""

import argparse
from typing import Any


def add_size(parser: argparse.ArgumentParser) -> None:
    """Adds size and speed of playback."""
    add = parser.add_argument_group("size; the model's own unless given").add_argument
    add("--height", type=int, metavar="PIXELS")
    add("--width", type=int, metavar="PIXELS")
    add("--frames", type=int, metavar="N")
    add("--fps", type=int, metavar="N", help="playback speed")
    add("--condition-fps", type=int, metavar="N", help="speed told to models that take one")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds sampler and guidance."""
    add = parser.add_argument_group("sampling and guidance").add_argument
    add("--steps", type=int, metavar="N", help="sampling steps (50)")
    add("--sampler", metavar="NAME", help="ddim dpmsolver++ unipc euler euler_ancestral (ddim)")
    add("--eta", type=float, metavar="X", help="share of fresh noise, 0 to 1 (ddim: 1)")
    add("--karras", action="store_true", default=None, help="Karras noise levels")
    add("--guidance", type=float, metavar="X", help="text guidance (15; pictures 6)")
    add(
        "--style-guidance",
        type=_float_or_none,
        metavar="X",
        help="style guidance (7.5; pictures none); 'none' guides text and style together",
    )
    add("--guidance-convention", choices=("released", "paper"), help="(released)")
    add("--guidance-rescale", type=float, metavar="X", help="0 (off) to 1")
    add(
        "--guidance-interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="guide only at these shares of noise (0 1)",
    )
    add("--style-weight", type=float, metavar="X", help="factor on the style branch (1)")
    add("--negative", dest="negative_prompt", metavar="PROMPT", help="what not to show")


def add_speed(parser: argparse.ArgumentParser) -> None:
    """Adds what changes speed and memory."""
    add = parser.add_argument_group("speed and memory").add_argument
    add(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="results at a time (1); with --mesh as many more as its parts of a batch want",
    )
    add("--dtype", choices=("float32", "bfloat16"), help="to compute in (bfloat16; CPU float32)")
    add("--param-dtype", choices=("float32", "bfloat16"), help="to hold weights in (as stored)")
    add(
        "--fast",
        action="store_true",
        help="fewer steps, and parts of them kept: docs/performance.md",
    )
    add("--cache-interval", type=int, metavar="N", help="run all of the UNet every N steps (1)")
    add("--cache-blocks", type=int, metavar="N", help="outermost blocks that run even then (1)")
    add("--decode-chunk", type=int, metavar="N", help="frames decoded at a time (4)")
    add("--decode-tile", type=int, metavar="N", help="side of a tile in latents, for large frames")


def add_mesh(parser: argparse.ArgumentParser) -> None:
    """Adds over which devices one batch is spread; see `read_mesh`."""
    parser.add_argument(
        "--mesh",
        metavar="AXES",
        help="devices that work on a batch together, such as data=2,frames=4 (one; of several "
        "processes all, along data)",
    )


def read_mesh(text: str | None) -> Any:
    """Returns the mesh that `--mesh` names; without one None, or of several processes all devices.

    Raises:
        ValueError: it names no mesh, more devices than there are, or none of some process.
    """
    import jax

    from stylecrafter_jax.processes import several
    from stylecrafter_jax.sharding import AXES, check_processes, parse_mesh, run_mesh

    if text is None and not several():
        return None
    sizes = {"data": jax.device_count()} if text is None else parse_mesh(text)
    data, fsdp, frames, tensor = (sizes.get(name, 1) for name in AXES)
    mesh = run_mesh(data, fsdp, frames, tensor, rows=data * fsdp)
    check_processes(mesh, f"--mesh {text}")
    return mesh


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds how the processes of a run find each other; see `start_processes`."""
    add = parser.add_argument_group(
        "several hosts: the same command on each; TPU slices and SLURM need none of these"
    ).add_argument
    add("--coordinator", metavar="HOST:PORT", help="process 0 (JAX_COORDINATOR_ADDRESS)")
    add("--process-count", type=int, metavar="N", help="processes of the run (JAX_NUM_PROCESSES)")
    add("--process-index", type=int, metavar="I", help="this one, from 0 (JAX_PROCESS_ID)")
    add("--lost-after", type=int, default=60, metavar="S", help="without a sign of life (60)")


def start_processes(args: argparse.Namespace) -> None:
    """Connects the processes of a run.

    Raises:
        ValueError: they are not described whole, or do not answer.
    """
    from stylecrafter_jax.processes import Given, Limits, start

    if args.lost_after < 1:
        raise ValueError(f"--lost-after must be at least 1 second, got {args.lost_after}")
    given = Given(args.coordinator, args.process_count, args.process_index)
    start(given, limits=Limits(lost=args.lost_after))


def _float_or_none(text: str) -> float | str:
    return "none" if text == "none" else float(text)
