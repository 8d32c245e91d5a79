"""`stylecrafter inspect --scales`: how strongly a model applies a style, as a table and a plot."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from stylecrafter_jax.media.plots import Line, line_plot
from stylecrafter_jax.media.video import write_frames
from stylecrafter_jax.request import check_prompt
from stylecrafter_jax.scales import SIMPLE_WORDS, Scales, measure

PLOT = "scales.png"


def run(args: argparse.Namespace) -> int:
    """Prints the factors and draws them.

    Raises:
        ValueError: an argument is absent, or a prompt or style cannot be used.
    """
    if not args.prompts or not args.styles:
        raise ValueError("--scales needs --prompts and --styles")
    prompts = read_prompts(args.prompts)
    found = measure(args.path, prompts, args.styles, verify="size" if args.quick else "hash")
    path = None if args.out is None else args.out / PLOT
    if path is not None:
        write_frames(plot(found)[None], path, fps=1)
    print(_as_json(args.path, found, path) if args.json else _as_text(args.path, found, path))
    return 0


def read_prompts(arguments: Sequence[str]) -> list[str]:
    """Returns prompts: the lines of those arguments that are files, and the others as they are.

    Raises:
        ValueError: a file is absent, is no text or holds no prompt.
    """
    prompts = []
    for argument in arguments:
        if not os.path.isfile(argument):
            if argument.endswith(".txt"):
                raise ValueError(f"there is no file {argument}")
            check_prompt(argument)
            prompts.append(argument)
            continue
        try:
            lines = Path(argument).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{argument} is no UTF-8 text") from error
        own = [line.strip() for line in lines if line.strip()]
        if not own:
            raise ValueError(f"{argument} holds no prompt; wanted one a line")
        prompts += own
    return prompts


def plot(found: Scales) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the picture of all series: a colour for each style, broken for long prompts."""
    styles = list(dict.fromkeys(series.style for series in found.series))
    lines = [
        Line(f"{s.group}, {s.style}", s.mean, styles.index(s.style), s.group == "long")
        for s in found.series
    ]
    return line_plot(
        lines,
        title="Predicted scale of the style branch, mean over prompts",
        x_label="dual cross-attention layer",
        y_label="scale",
        x_ticks=[str(i) for i in range(len(found.layers))],
    )


def _as_json(bundle: Path, found: Scales, path: Path | None) -> str:
    return json.dumps(
        {
            "path": str(bundle),
            "layers": [layer._asdict() for layer in found.layers],
            "prompts": found.prompts,
            "series": [series._asdict() for series in found.series],
            "plot": None if path is None else str(path),
        }
    )


def _as_text(bundle: Path, found: Scales, path: Path | None) -> str:
    counts = [f"{len(prompts)} {group}" for group, prompts in found.prompts.items()]
    lines = [
        f"{bundle}: scale of the style branch, mean and standard deviation over prompts",
        f"prompts: {', '.join(counts)} (simple: at most {SIMPLE_WORDS} words)",
    ]
    rows = [["", "layer", "grid", *(f"{s.group} {s.style}" for s in found.series)]]
    for i, layer in enumerate(found.layers):
        cells = [f"{series.mean[i]:.3f} ±{series.std[i]:.3f}" for series in found.series]
        rows.append([str(i), layer.name, f"{layer.height}x{layer.width}", *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if i == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, f"wrote {path}"] if path else lines)
