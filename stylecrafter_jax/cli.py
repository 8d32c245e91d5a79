"""The command line: argument parsing and one thin function per subcommand."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from stylecrafter_jax.commands import data, new, planning, report, statuses, train
from stylecrafter_jax.commands.arguments import (
    add_mesh,
    add_processes,
    add_sampling,
    add_size,
    add_speed,
)

EXAMPLES = """examples:
  stylecrafter generate "A wolf in the forest." --style painting.jpg --bundle bundle
  stylecrafter generate "A lighthouse." --style a.png b.png --image --out lighthouse.png
  stylecrafter generate --list eval_video_gen_example.json --out results --batch-size 4

Standard output gets the path of each result, one a line; everything else goes to standard error.
Beside each result stands a JSON file with everything that decides its pixels. Run the same again
after a stop, and what is there already is not made again. The same seed and index give the same
result: result i of a list (counted from 0) is that of its prompt alone with --index i.

On several hosts run the same on each, with the bundle, the list and the style images at hand there.
All work on every batch together; the first alone looks into --out, writes and prints. SIGTERM or
Ctrl-C on one ends all after the batch under way, with status 3.

exit status: 0 all results are there, 1 an error (one line says which), 2 usage, 130 interrupted; of
several processes 3 stopped after a batch, 4 another one is gone (run all again to go on); where
JAX's runtime sees that first, it ends the process by SIGABRT
"""

EVALUATE_NOTES = """metrics:
  clip_text            mean cosine of prompt and frames
  clip_style           mean cosine of frames and the mean of the references
  clip_temp            mean cosine of adjacent frames
  warping_correct      squared difference along the optical flow, mean over colours
  warping_evalcrafter  the same as EvalCrafter's code computes it: another scale and mask
  dino_style           as clip_style, with the embeddings of --dino

Run the same again after a stop: what is made is not made again, and what is measured with the same
settings is not measured again. DIR/items.jsonl has each video's values; metrics.md, metrics.json
and sheet.png are the result. Intervals are bootstrapped over prompts.

--demo measures the embedded model, or another of the demo world, on prompts and styles that its
training never saw, with judges that were trained on drawings alone: metrics.json has content,
style, motion and temporal consistency beside the same of true clips.

examples:
  stylecrafter evaluate --bundle bundle --list eval_video_gen_example.json --out evaluation
  stylecrafter evaluate --demo --out demo_evaluation
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str):
        """Ends the program with the message and where to read on."""
        self.exit(statuses.USAGE, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. A user's mistake is one line, not a traceback."""
    try:
        args = build_parser().parse_args(argv)
        status = args.run(args) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("stylecrafter: interrupted; finished results are kept", file=sys.stderr)
        return statuses.INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone; without this, Python would complain of it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return statuses.ERROR
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"stylecrafter: error: {message}", file=sys.stderr)
        return statuses.ERROR


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all subcommands."""
    parser = Parser(
        prog="stylecrafter", description="Stylised video and pictures from text and style images."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_evaluate(commands)
    _add_convert(commands)
    data.add_parser(commands)
    new.add_parser(commands)
    train.add_parser(commands)
    report.add_parser(commands)
    _add_inspect(commands)
    planning.add_parser(commands)
    _add_demo(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version("stylecrafter_jax")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _add_generate(commands) -> None:
    parser = commands.add_parser(
        "generate",
        help="make videos or pictures",
        usage="%(prog)s PROMPT --style IMAGE [IMAGE ...] [options]\n"
        "       %(prog)s --list JSON [options]",
        description="Makes a video (or picture) with the prompt's content in the images' style. "
        "Defaults are the released scripts'.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", nargs="?", help="what to show")
    add = parser.add_argument_group("what to make").add_argument
    add("--style", nargs="+", type=Path, metavar="IMAGE", help="one or several style references")
    add("--style-weights", nargs="+", type=float, metavar="W", help="how much each counts (1)")
    add("--list", type=Path, metavar="JSON", help="a list of prompts and style images instead")
    add("--bundle", type=Path, metavar="DIR", help="the model (the embedded demo model)")
    add("--image", action="store_true", help="make pictures: one frame, temporal layers off")
    add("--samples", type=int, default=1, metavar="N", help="results per prompt (1)")
    add("--seed", type=int, metavar="N", help="0 to 4294967295 (123)")
    add("--index", type=int, default=0, metavar="N", help="random index of the first result (0)")
    add("--start", type=Path, metavar="VIDEO", help="a video or picture to start from")
    add("--strength", type=float, metavar="X", help="share of the noise put on the start (1)")
    add_size(parser)
    add_sampling(parser)
    add = parser.add_argument_group("output").add_argument
    add("--out", type=Path, metavar="PATH", help="a file, or a folder (outputs)")
    add("--format", metavar="F", help="mp4 gif webp frames sheet (mp4); png jpg webp (png)")
    add("--overwrite", action="store_true", help="replace results that are in the way")
    add("--quiet", action="store_true", help="nothing but warnings and errors on standard error")
    add_speed(parser)
    add_mesh(parser)
    add_processes(parser)
    parser.set_defaults(run=_generate)


def _add_evaluate(commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure videos of a list: CLIP scores, warping error",
        description="Generates a list's videos, or takes finished ones, and measures them.",
        epilog=EVALUATE_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what to measure").add_argument
    add("--bundle", type=Path, metavar="DIR", help="the model, and CLIP to measure")
    add("--list", type=Path, metavar="JSON", help="prompts and style images")
    add("--demo", action="store_true", help="a model of the demo world, on the world's own cases")
    add("--count", type=int, metavar="N", help="cases of --demo (100)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of videos and results")
    add("--videos", type=Path, metavar="DIR", help="finished videos, 0000.mp4 and so on, instead")
    add("--metrics", metavar="A,B", help="names of the table below (all that are possible)")
    add("--flow", metavar="MODULE:FUNCTION", help="optical flow (OpenCV's dense inverse search)")
    add("--dino", metavar="MODULE:FUNCTION", help="images to embeddings, for dino_style")
    add("--quiet", action="store_true", help="nothing but warnings and errors on standard error")
    add = parser.add_argument_group("what to make").add_argument
    add("--image", action="store_true", help="make pictures: one frame, temporal layers off")
    add("--samples", type=int, default=1, metavar="N", help="results per prompt (1)")
    add("--seed", type=int, metavar="N", help="0 to 4294967295 (123)")
    add("--index", type=int, default=0, metavar="N", help="random index of the first result (0)")
    add("--format", choices=("mp4", "frames"), help="frames loses nothing (mp4; pictures png)")
    add("--overwrite", action="store_true", help="replace results that are in the way")
    add_size(parser)
    add_sampling(parser)
    add_speed(parser)
    add_mesh(parser)
    parser.set_defaults(run=_evaluate)


def _add_convert(commands) -> None:
    convert = commands.add_parser("convert", help="PyTorch checkpoints to bundles and back")
    actions = convert.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("import", help="original files -> bundle").add_argument
    parser = actions.choices["import"]
    add("out", type=Path, help="the bundle folder to write")
    add("--model", type=Path, required=True, metavar="FILE", help="VideoCrafter's model.ckpt")
    add("--adapter", type=Path, metavar="FILE", help="adapter_v1.pth")
    add("--temporal", type=Path, metavar="FILE", help="temporal_v1_1.pth")
    add("--open-clip", type=Path, metavar="FILE", help="OpenCLIP ViT-H-14 (.bin or .safetensors)")
    add("--config", type=Path, metavar="JSON", help="the model, if not the released 320x512 one")
    add("--tokenizer", type=Path, metavar="DIR", help="tokenizer files to put into the bundle")
    add(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="store weights as (as they are)"
    )
    add("--ignore", nargs="+", default=[], metavar="REGEX", help="tensors to leave out")
    add("--overwrite", action="store_true")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_import)
    parser = actions.add_parser("export", help="bundle or training run -> original files")
    add = parser.add_argument
    add("bundle", type=Path, help="or a run's folder: its newest checkpoint, moving average")
    add("out", type=Path, help="the folder to write the files into")
    add(
        "--what",
        nargs="+",
        choices=("model", "adapter", "temporal", "open_clip"),
        help="which files (all the bundle holds)",
    )
    add("--overwrite", action="store_true")
    parser.set_defaults(run=_export)


def _add_inspect(commands) -> None:
    parser = commands.add_parser("inspect", help="what a bundle or checkpoint file holds")
    parser.add_argument("path", type=Path)
    parser.add_argument("--quick", action="store_true", help="do not compute hashes")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add = parser.add_argument_group("how strongly a bundle's model applies a style").add_argument
    add("--scales", action="store_true", help="the predicted scale of every layer instead")
    add("--prompts", nargs="+", metavar="P", help="prompts, or text files of one a line")
    add("--styles", nargs="+", type=Path, metavar="IMAGE", help="style images")
    add("--out", type=Path, metavar="DIR", help="draw them in DIR/scales.png")
    parser.set_defaults(run=_inspect)


def _add_demo(commands) -> None:
    parser = commands.add_parser("demo", help="some clips of the embedded model")
    add = parser.add_argument
    add("--out", type=Path, default=Path("outputs/demo"), metavar="DIR")
    add("--seed", type=int, default=0, metavar="N")
    parser.set_defaults(run=_demo)


def _generate(args: argparse.Namespace) -> int:
    from stylecrafter_jax.commands.generate import run

    return run(args)


def _evaluate(args: argparse.Namespace) -> int:
    from stylecrafter_jax.commands import evaluate, evaluate_demo
    from stylecrafter_jax.commands.several import refuse_several

    refuse_several("evaluate", "generate in several, then evaluate --videos in one")
    return evaluate_demo.run(args) if args.demo else evaluate.run(args)


def _import(args: argparse.Namespace) -> int:
    from stylecrafter_jax.commands.convert import import_

    return import_(args)


def _export(args: argparse.Namespace) -> int:
    from stylecrafter_jax.commands.convert import export

    return export(args)


def _inspect(args: argparse.Namespace) -> int:
    from stylecrafter_jax.commands.inspect import run

    return run(args)


def _demo(args: argparse.Namespace) -> int:
    from stylecrafter_jax.commands.demo import run

    return run(args)
