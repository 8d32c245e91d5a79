"""`stylecrafter convert`: PyTorch checkpoints to bundles and back."""

import argparse
import tempfile
from pathlib import Path

import jax.numpy as jnp

from stylecrafter_jax.checkpoints.convert import export_original, import_original
from stylecrafter_jax.config import ConfigError, ModelConfig
from stylecrafter_jax.config_json import from_dict
from stylecrafter_jax.foreign import JSONError, read_json
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.tokenizer import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "merges.txt")


def import_(args: argparse.Namespace) -> int:
    """Writes a bundle from the original's files and says what was left out, and why."""
    config = read_model(args.config)
    left_out = import_original(
        args.out,
        config=config,
        expected=parameter_shapes(config),
        model_ckpt=args.model,
        adapter=args.adapter,
        temporal=args.temporal,
        open_clip=args.open_clip,
        files=tokenizer_files(args.tokenizer or _folder_with_tokenizer(args.open_clip)),
        dtype=None if args.dtype is None else jnp.dtype(args.dtype),
        ignore=args.ignore,
        progress=not args.quiet,
        overwrite=args.overwrite,
    )
    for reason, names in left_out.items():
        print(f"left out {len(names)}: {reason}")
    print(f"wrote {args.out}")
    return 0


def export(args: argparse.Namespace) -> int:
    """Writes the original's files from a bundle, or from the newest checkpoint of a run."""
    from stylecrafter_jax.train.runs import export_run, is_run

    if is_run(args.bundle):
        paths = export_run(args.bundle, args.out, args.what, overwrite=args.overwrite)
    else:
        paths = export_original(
            args.bundle,
            args.out,
            expected=parameter_shapes,
            what=args.what,
            overwrite=args.overwrite,
        )
    for path in paths:
        print(f"wrote {path}")
    return 0


def read_model(path: Path | None) -> ModelConfig:
    """Returns the model a JSON file describes; None is the released one.

    Raises:
        ConfigError: the file is unreadable, or a setting in it is unknown or wrong.
    """
    if path is None:
        return ModelConfig()
    try:
        values = read_json(path)
    except (OSError, JSONError) as error:
        raise ConfigError(f"cannot read the model's config {path}: {error}") from error
    return from_dict(ModelConfig, values)


def tokenizer_files(folder: Path | None) -> dict[str, bytes]:
    """Returns a bundle's tokenizer files: those of a folder, or CLIP's own byte-pair merges."""
    with tempfile.TemporaryDirectory() as scratch:
        Tokenizer.load(folder).save(Path(scratch))
        return {f"tokenizer/{file.name}": file.read_bytes() for file in Path(scratch).iterdir()}


def _folder_with_tokenizer(checkpoint: Path | None) -> Path | None:
    """Returns the checkpoint's folder if it brings a tokenizer."""
    if checkpoint is None:
        return None
    has_one = any((checkpoint.parent / name).is_file() for name in TOKENIZER_FILES)
    return checkpoint.parent if has_one else None
