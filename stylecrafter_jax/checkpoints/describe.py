"""What a bundle or one of the original's files holds, and whether it is whole."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stylecrafter_jax import params as weights
from stylecrafter_jax.checkpoints.bundle import (
    Manifest,
    Shapes,
    Verify,
    is_bundle,
    part_of,
    problems,
    read_config,
    read_manifest,
)
from stylecrafter_jax.checkpoints.stylecrafter import FILES, ignored, kind_of
from stylecrafter_jax.checkpoints.torch_files import CheckpointError, read_tensors
from stylecrafter_jax.config import ModelConfig

GROUPS = {  # first component of a whole model's name -> part
    "model": "unet",
    "first_stage_model": "vae",
    "cond_stage_model": "text_encoder",
    "style_stage_model": "image_encoder",
    "adapter": "adapter",
}


class PartSummary(NamedTuple):
    """One part: its files, and the number and size of what it holds."""

    name: str
    files: list[str]
    tensors: int
    parameters: int
    bytes: int
    dtypes: list[str]


class Description(NamedTuple):
    """What `stylecrafter inspect` shows.

    Attributes:
        path: what was described.
        kind: "bundle", the released name of the original's file, or "tensors" for any other.
        config: the bundle's config, None for a file.
        parts: what it holds; names that are no parameters are a part "not used: <reason>".
        problems: how files differ from the manifest, hashes included, and missing parameters.
        verified: whether hashes were compared.
    """

    path: Path
    kind: str
    config: ModelConfig | None
    parts: list[PartSummary]
    problems: list[str]
    verified: bool


def describe(
    path: str | os.PathLike[str],
    *,
    expected: Callable[[ModelConfig], Shapes] | None = None,
    verify: Verify = "hash",
) -> Description:
    """Returns what a bundle or a checkpoint file holds.

    Args:
        path: a bundle, or a file of PyTorch or safetensors.
        expected: config -> shapes, to report a bundle's missing parameters; parts that it does not
            have at all are no problem.
        verify: for a bundle, whether to compare hashes.

    Raises:
        CheckpointError: there is nothing to describe; a damaged bundle is described instead.
    """
    path = Path(path)
    if path.is_dir():
        if not is_bundle(path):
            raise CheckpointError(f"{path} is no bundle: config.json or manifest.json is missing")
        return _describe_bundle(path, expected, verify)
    tensors = read_tensors(path)
    kind = kind_of(tensors)
    prefix = FILES[kind].prefix if kind else ""
    rows = [
        (_group(prefix + name) if kind else "tensors", path.name, array.dtype.name, array.shape)
        for name, array in tensors.items()
    ]
    return Description(
        path, FILES[kind].name if kind else "tensors", None, _summaries(rows), [], False
    )


def _describe_bundle(
    path: Path, expected: Callable[[ModelConfig], Shapes] | None, verify: Verify
) -> Description:
    config, manifest = read_config(path), read_manifest(path)
    rows = [
        (part_of(name), file, dtype, shape)
        for file, record in manifest.items()
        for name, (dtype, shape) in record.tensors.items()
    ]
    parts = _summaries(rows)
    lines = [line for file in manifest for line in problems(path / file, manifest[file], verify)]
    if expected is not None:
        have = {part.name for part in parts}
        wanted = {name: s for name, s in expected(config).items() if part_of(name) in have}
        lines += weights.mismatches(wanted, _shapes(manifest))
    return Description(path, "bundle", config, parts, lines, verify == "hash")


def _shapes(manifest: Manifest) -> Mapping[str, Any]:
    return {
        name: np.broadcast_to(np.float32(0), shape)
        for record in manifest.values()
        for name, (_, shape) in record.tensors.items()
    }


def _group(name: str) -> str:
    reason = ignored(name)
    return f"not used: {reason}" if reason else GROUPS.get(name.split(".")[0], "unknown")


def _summaries(rows: Iterable[tuple[str, str, str, tuple[int, ...]]]) -> list[PartSummary]:
    """Returns the summary of each part, given (part, file, dtype, shape) of every tensor."""
    grouped: dict[str, list[tuple[str, str, int]]] = {}
    for part, file, dtype, shape in rows:
        grouped.setdefault(part, []).append((file, dtype, int(np.prod(shape, dtype=np.int64))))
    return [
        PartSummary(
            name=part,
            files=sorted({file for file, _, _ in tensors}),
            tensors=len(tensors),
            parameters=sum(size for _, _, size in tensors),
            bytes=sum(size * np.dtype(dtype).itemsize for _, dtype, size in tensors),
            dtypes=sorted({dtype for _, dtype, _ in tensors}),
        )
        for part, tensors in grouped.items()
    ]
