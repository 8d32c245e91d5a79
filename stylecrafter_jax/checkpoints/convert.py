"""The original's checkpoint files into our bundle and back, without loss, part by part."""

import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike
from tqdm import tqdm

from stylecrafter_jax import params as weights
from stylecrafter_jax.checkpoints import layout
from stylecrafter_jax.checkpoints.bundle import (
    BundleWriter,
    Shapes,
    load_bundle,
    part_of,
    parts_of,
    read_config,
    read_manifest,
)
from stylecrafter_jax.checkpoints.layout import Entry
from stylecrafter_jax.checkpoints.stylecrafter import (
    FILES,
    Kind,
    entries,
    entry,
    ignored,
    kind_of,
    owned_by,
    towers_of,
)
from stylecrafter_jax.checkpoints.torch_files import CheckpointError, read_tensors, write_torch
from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.diffusion.schedules import buffers, make_schedule

PathLike = str | os.PathLike[str]


class Source(NamedTuple):
    """A tensor of one of the original's files."""

    array: np.ndarray
    kind: Kind


def import_original(
    out: PathLike,
    *,
    config: ModelConfig,
    expected: Shapes,
    model_ckpt: PathLike,
    adapter: PathLike | None = None,
    temporal: PathLike | None = None,
    open_clip: PathLike | None = None,
    files: Mapping[str, bytes] | None = None,
    dtype: DTypeLike | None = None,
    ignore: Sequence[str] = (),
    progress: bool = True,
    overwrite: bool = False,
) -> dict[str, list[str]]:
    """Writes the bundle `out` from the original's files; every tensor is used or named.

    Without an adapter in any file the bundle is a base model, without style; an adapter needs the
    image tower of `open_clip`. A file of one tower or of both, OpenCLIP's or Hugging Face's, will
    do; the text tower is model.ckpt's own if it has one.

    Args:
        out: the folder to write.
        config: the model that the files hold.
        expected: shape of every parameter of that model, as `models.networks.parameter_shapes`.
        model_ckpt: the base model, or a whole inference model.
        adapter: adapter_v1.pth.
        temporal: temporal_v1_1.pth; its tensors replace those of model.ckpt.
        open_clip: open_clip_pytorch_model.bin.
        files: further files of the bundle, such as the tokenizer's, by their path in it.
        dtype: what to store tensors as; None keeps each one's own.
        ignore: regular expressions of further names to leave out, as in the whole model.
        progress: show a bar of the bytes done and the peak of resident memory.
        overwrite: replace an existing bundle.

    Returns:
        Why a tensor was left out -> the names of those tensors.

    Raises:
        CheckpointError: a file is unreadable or of another kind; tensors are missing, unused,
            misshapen, or not finite; the schedule is another one; `out` exists. `out` is as before.

    Source: StyleCrafter, scripts/evaluation/style_inference.py, run_inference.
    """
    sources = _gather(
        {"model": model_ckpt, "temporal": temporal, "adapter": adapter, "open_clip": open_clip}
    )
    wanted, towers = _wanted(expected, sources), towers_of(sources)
    table = {name: entry(name, towers) for name in wanted}
    left_out = _match(wanted, table, sources, ignore)
    _check_schedule(config, sources)
    tensors = {name: source.array for name, source in sources.items()}
    views = {name: layout.read(table[name], tensors) for name in table}
    _check_space(Path(out), views, dtype)
    names = sorted(views, key=lambda name: (weights.PARTS.index(part_of(name)), name))
    with BundleWriter(out, config, overwrite=overwrite) as writer, _bar(views, progress) as bar:
        for name in names:
            # A cast out of range gives infinity, which the writer refuses by name.
            with np.errstate(over="ignore"):
                writer.add(name, views[name] if dtype is None else views[name].astype(dtype))
            bar.set_postfix_str(f"peak {_peak_gib():.1f} GiB", refresh=False)
            bar.update(views[name].nbytes)
        for name, content in (files or {}).items():
            writer.add_file(name, content)
    return left_out


def export_original(
    bundle: PathLike,
    out_dir: PathLike,
    *,
    expected: Callable[[ModelConfig], Shapes],
    what: Collection[Kind] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Writes the original's files from a bundle, for PyTorch to load strictly; returns their paths.

    Names, shapes and order are those of the released files, dtypes those of the bundle. The
    temporal transformers of model.ckpt are those of the bundle, as in the temporal file.

    Args:
        bundle: the folder to read.
        out_dir: the folder to write into, under the released names.
        expected: as for `load_bundle`.
        what: the files to write; None: all that the bundle holds the parts of.
        overwrite: replace existing files.

    Raises:
        CheckpointError: the bundle is damaged or lacks a part; a file exists.
    """
    config, have = read_config(bundle), parts_of(read_manifest(bundle))
    if what is None:
        what = [kind for kind in FILES if set(FILES[kind].parts) <= set(have)]
    paths: dict[Kind, Path] = {kind: Path(out_dir) / FILES[kind].name for kind in what}
    existing = [str(path) for path in paths.values() if path.exists()]
    if existing and not overwrite:
        raise CheckpointError(f"{', '.join(existing)} already exists; choose another folder")
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    for kind, path in paths.items():
        _, params = load_bundle(bundle, expected=expected, parts=FILES[kind].parts)
        write_torch(path, exported(kind, config, params))
    return list(paths.values())


def exported(kind: Kind, config: ModelConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the original's file of this kind holds, given our parameters by name."""
    tensors = layout.state_dict(entries(kind, params), params)
    if kind == "model":
        return {"state_dict": {**buffers(make_schedule(config.schedule)), **dict(tensors)}}
    return _by_module(tensors) if kind == "temporal" else dict(tensors)


def _by_module(tensors: Iterator[tuple[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Returns temporal transformers as the original saves them: module -> its state dict."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors:
        match = re.fullmatch(r"(.+?)\.((?:norm|proj_in|proj_out|transformer_blocks)\..+)", name)
        assert match, name  # params.TEMPORAL selects no other names
        modules.setdefault(match[1], {})[match[2]] = array
    return modules


def _gather(paths: Mapping[Kind, PathLike | None]) -> dict[str, Source]:
    """Returns the tensors of all files under the whole model's names."""
    merged = {}
    for kind, file in FILES.items():
        path = paths[kind]
        if path is None:
            continue
        tensors = read_tensors(path)
        found = kind_of(tensors)
        if found != kind:
            like = f"looks like {FILES[found].name}" if found else f"has {next(iter(tensors))}, ..."
            raise CheckpointError(f"{path}: wanted tensors as in {file.name}; this {like}")
        merged |= {file.prefix + name: Source(array, kind) for name, array in tensors.items()}
    return merged


def _wanted(expected: Shapes, sources: Mapping[str, Source]) -> Shapes:
    """Returns the parameters of the parts that the files can fill."""
    has_adapter = any(name.startswith(FILES["adapter"].prefix) for name in sources)
    has_image = any(name.startswith(FILES["open_clip"].prefix) for name in sources)
    if has_adapter and not has_image:
        wanted = FILES["open_clip"].name
        raise CheckpointError(f"the adapter needs the image tower of {wanted}, which is not given")
    has = {"adapter": has_adapter, "image_encoder": has_image}
    return {name: shape for name, shape in expected.items() if has.get(part_of(name), True)}


def _match(
    wanted: Shapes, table: Mapping[str, Entry], sources: Mapping[str, Source], ignore: Sequence[str]
) -> dict[str, list[str]]:
    """Returns the tensors left out, by reason, once all others match the wanted parameters."""
    shapes = {
        item.name: jax.ShapeDtypeStruct(layout.shape(item, wanted[name].shape), wanted[name].dtype)
        for name, item in table.items()
    }
    left_out: dict[str, list[str]] = {}
    used = {}
    for name, source in sources.items():
        asked = any(re.search(pattern, name) for pattern in ignore)
        reason = "left out as asked" if asked else ignored(name)
        if name in shapes or reason is None:
            used[name] = source.array
        else:
            left_out.setdefault(reason, []).append(name)
    lines = weights.mismatches(shapes, used)
    if lines:
        raise CheckpointError(f"the files do not make the configured model: {'; '.join(lines)}")
    if any(source.kind == "temporal" for source in sources.values()):
        kept = [n for n in table if owned_by("temporal", n) and _kind(n, table, sources) == "model"]
        if kept:
            file = FILES["temporal"].name
            raise CheckpointError(f"{file} lacks {len(kept)}: {', '.join(kept[:8])}")
    return left_out


def _kind(name: str, table: Mapping[str, Entry], sources: Mapping[str, Source]) -> Kind:
    return sources[table[name].name].kind


def _check_schedule(config: ModelConfig, sources: Mapping[str, Source]) -> None:
    """Refuses files of another noise schedule: the original would sample by the files' tables."""
    name = "alphas_cumprod"
    if name not in sources:
        return
    ours, theirs = buffers(make_schedule(config.schedule))[name], sources[name].array
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-4, atol=1e-6):
        raise CheckpointError(f"{name} of the files is not that of the config's schedule")


def _check_space(out: Path, views: Mapping[str, np.ndarray], dtype: DTypeLike | None) -> None:
    need = sum(
        view.size * (view.dtype if dtype is None else np.dtype(dtype)).itemsize
        for view in views.values()
    )
    parent = next(folder for folder in out.resolve().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if need > free:
        gib = 2**30
        raise CheckpointError(f"{out} needs {need / gib:.1f} GiB, {free / gib:.1f} GiB are free")


def _bar(views: Mapping[str, np.ndarray], progress: bool) -> tqdm:
    total = sum(view.nbytes for view in views.values())
    return tqdm(total=total, unit="B", unit_scale=True, desc="import", disable=not progress)


def _peak_gib() -> float:
    """Returns the peak resident memory of this process, memory-mapped files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
