"""`stylecrafter data encode`: the features of a run's data, computed once."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stylecrafter_jax.commands.train import add_experiment

if TYPE_CHECKING:
    from stylecrafter_jax.data.shards import Report
    from stylecrafter_jax.train.precompute import Encoded

SHOWN_REFUSALS = 20

EPILOG = """\
Run again to go on after an interruption. OUT/images and OUT/videos take the place of the data:

  stylecrafter data encode configs/stage1_t2i.py --out features --epochs 4
  stylecrafter train configs/stage1_t2i.py --out run --set data.images=features/images

Training is the same as on the data, up to rounding, but for one thing: there are as many crops of a
picture, and cuts of a clip, as epochs were encoded. Features serve every bundle with the same
autoencoder and CLIP towers, whatever its UNet and adapter.
"""


def add_parser(actions) -> None:
    """Adds `encode` to the actions of `data`."""
    parser = actions.add_parser(
        "encode",
        help="a run's data -> latents and CLIP features",
        description="Computes the frozen encoders' output for the data of a training config.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_experiment(parser)
    add("--out", type=Path, required=True, metavar="OUT", help="the folder to write")
    which = parser.add_mutually_exclusive_group()
    for kind in ("images", "videos"):
        which.add_argument(
            f"--{kind}",
            dest="kinds",
            action="store_const",
            const=(kind,),
            default=("images", "videos"),
            help=f"data.{kind} alone",
        )
    add("--epochs", type=int, default=1, metavar="K", help="crops or cuts of each record (1)")
    add("--count", type=int, metavar="N", help="of the first N records of each source (all)")
    add("--dtype", choices=("float32", "float16"), default="float32", help="to store (float32)")
    add("--shard-size", type=int, default=256, metavar="N", help="records per shard (256)")
    add("--batch-size", type=int, default=4, metavar="N", help="records per device at a time (4)")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_encode)


def _encode(args: argparse.Namespace) -> int:
    """Encodes, and says what was refused and how fast it went."""
    from tqdm import tqdm

    from stylecrafter_jax.train.experiment import load_experiment, override
    from stylecrafter_jax.train.precompute import encode

    experiment = override(load_experiment(args.config), args.settings)
    # Nothing is shown before the first record, so that a mistake is one line.
    with tqdm(unit="record", disable=args.quiet, delay=1e-6) as bar:

        def advance(records: int, total: int) -> None:
            bar.total = total
            bar.update(records)

        results = encode(
            experiment,
            args.out,
            kinds=args.kinds,
            count=args.count,
            epochs=args.epochs,
            dtype=args.dtype,
            shard_size=args.shard_size,
            batch_size=args.batch_size,
            progress=advance,
        )
    for result in results:
        print(describe(result))
    return 0


def describe(result: "Encoded") -> str:
    """Returns what became of one kind of data, in a few lines."""
    if result.report is None:
        return f"{result.folder} is finished already"
    report = result.report
    return "\n".join(
        [
            *refusals(report, result.folder),
            f"{written(report, result.folder)}; {report.new / result.seconds:.1f} records/s",
        ]
    )


def refusals(report: "Report", folder: Path) -> list[str]:
    """Returns a line for each of the first refused records."""
    from stylecrafter_jax.data.shards import REFUSED_FILE

    lines = [f"refused {name}: {reason}" for name, reason in report.refused[:SHOWN_REFUSALS]]
    more = len(report.refused) - SHOWN_REFUSALS
    return lines + [f"refused {more} more: {folder / REFUSED_FILE}"] * (more > 0)


def written(report: "Report", folder: Path) -> str:
    """Returns one line on what was written."""
    again = f", {report.resumed} of them made before" if report.resumed else ""
    return (
        f"wrote {report.packed} records ({report.bytes / 1e6:.1f} MB) in {report.shards} shards"
        f"{again} to {folder}; refused {len(report.refused)}"
    )
