"""`stylecrafter report`."""

import argparse
from pathlib import Path

REPORT = "report.html"


def add_parser(commands) -> None:
    """Adds `report` to the subcommands."""
    parser = commands.add_parser(
        "report",
        help="a training run as one HTML file",
        description="Writes curves, samples, checkpoints, faults, config and environment of a run "
        "into one HTML file that needs nothing else. The run may be going on.",
    )
    add = parser.add_argument
    add("source", type=Path, metavar="RUN", help="the run's folder")
    add("--out", type=Path, metavar="FILE", help=f"where to (RUN/{REPORT})")
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    """Writes the report."""
    from stylecrafter_jax.config import ConfigError
    from stylecrafter_jax.files import write_text
    from stylecrafter_jax.report.facts import read_facts
    from stylecrafter_jax.report.page import page

    facts = read_facts(args.source)
    out = args.source / REPORT if args.out is None else args.out
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ConfigError(f"--out: wanted a file in a folder that exists, got {out}")
    write_text(out, page(facts))
    print(out)
    return 0
