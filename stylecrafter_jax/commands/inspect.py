"""`stylecrafter inspect`: what a bundle or a checkpoint file holds, and what is missing."""

import argparse
import json

from stylecrafter_jax.checkpoints.describe import Description, describe
from stylecrafter_jax.commands import scales
from stylecrafter_jax.config_json import to_dict
from stylecrafter_jax.models.networks import parameter_shapes


def run(args: argparse.Namespace) -> int:
    """Prints a description; returns 1 if something is wrong with what was inspected.

    Raises:
        ValueError: arguments contradict each other.
    """
    if args.scales:
        return scales.run(args)
    if args.prompts or args.styles or args.out:
        raise ValueError("--prompts, --styles and --out belong to --scales")
    verify = "size" if args.quick else "hash"
    found = describe(args.path, expected=parameter_shapes, verify=verify)
    print(_as_json(found) if args.json else _as_text(found))
    return 1 if found.problems else 0


def _as_json(found: Description) -> str:
    return json.dumps(
        {
            "path": str(found.path),
            "kind": found.kind,
            "config": None if found.config is None else to_dict(found.config),
            "parts": [part._asdict() for part in found.parts],
            "problems": found.problems,
            "hashes_verified": found.verified,
        }
    )


def _as_text(found: Description) -> str:
    lines = [f"{found.path}: {found.kind}"]
    if found.config is not None:
        size, multiple = found.config.size, found.config.size_multiple
        lines.append(
            f"native {size.width}x{size.height}, {size.frames} frames, pictures "
            f"{size.image_width}x{size.image_height}; sides are multiples of {multiple}"
        )
    rows = [("part", "tensors", "parameters", "size", "dtype", "files")]
    for part in found.parts:
        files = part.files[0] if len(part.files) == 1 else f"{len(part.files)} files"
        size = f"{part.bytes / 2**20:.1f} MiB"
        count = f"{part.parameters / 1e6:.3f} M"
        rows.append((part.name, str(part.tensors), count, size, ",".join(part.dtypes), files))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if 0 < i < 4 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    if found.config is not None:
        lines.append("hashes agree" if found.verified and not found.problems else "")
    lines += [f"problem: {line}" for line in found.problems]
    return "\n".join(line for line in lines if line)
