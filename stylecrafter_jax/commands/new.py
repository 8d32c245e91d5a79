"""`stylecrafter new`: a model without weights, for training from scratch."""

import argparse
from pathlib import Path

DESCRIPTION = """\
Writes the bundle of a model without weights: its config and its tokenizer. The stages autoencoder,
clip and base train each part from scratch; a part is whatever the bundle has, or new.

MODEL is a Python file, which is run, with get_model(), which returns a NewModel: the config, and
the captions from which to train a tokenizer of clip.text.vocab_size; without captions the tokenizer
is CLIP's. configs/demo_model.py is one.
"""


def add_parser(commands) -> None:
    """Adds `new` to the subcommands."""
    parser = commands.add_parser(
        "new",
        help="a model without weights, to be trained from scratch",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a Python file; see above")
    parser.add_argument("out", type=Path, help="the bundle folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.set_defaults(run=_new)


def _new(args: argparse.Namespace) -> int:
    """Writes the bundle."""
    from stylecrafter_jax.config_file import call_in_file
    from stylecrafter_jax.train.new_model import NewModel, write_new

    write_new(call_in_file(args.model, "get_model", NewModel), args.out, overwrite=args.overwrite)
    print(args.out)
    return 0
