"""Files of named tensors, PyTorch's and safetensors, read and written as numpy arrays.

Reading never runs code from the file: a pickle may name nothing beyond tensors and plain
containers, except classes of training frameworks, for which an inert stand-in is made.
"""

import contextlib
import mmap
import os
import re
import types
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from stylecrafter_jax.foreign import one_line, parse_json

Tensors = Mapping[str, np.ndarray]
SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")
ZIP_MAGIC = b"PK\x03\x04"
# The original's dicts of modules nest once.
DEEPEST = 8
# Lightning stores its callbacks and settings beside the weights, as objects of these packages.
INERT_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "numpy")
SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class CheckpointError(ValueError):
    """A checkpoint is unreadable, incomplete, or not what it should be."""


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by name, memory-mapped wherever the format allows.

    An object `{"state_dict": ...}` is unwrapped and what stands beside it left out; nested state
    dicts become names joined by dots. Dtypes stay as they are. The arrays are read-only.

    Raises:
        CheckpointError: the file is absent, truncated, empty, no checkpoint, or a pickle that
            wants to run something.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        wanted = ", ".join(SUFFIXES)
        raise CheckpointError(f"{path}: wanted a file ending in one of {wanted}")
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path)
    else:
        tensors = {}
        for name, array in _arrays(path, _unwrap(path, _load_pickle(path))):
            if name in tensors or len(tensors) > path.stat().st_size:
                raise CheckpointError(f"{path}: {one_line(name)} comes twice, or names never end")
            tensors[name] = array
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    for array in tensors.values():
        array.flags.writeable = False
    return tensors


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the memory-mapped tensors of a safetensors file by name.

    Raises:
        CheckpointError: the file is truncated or damaged, or a dtype is unknown.

    Source: safetensors, README, "Format".
    """
    try:
        with safe_open(path, framework="numpy") as file:  # checks header, offsets and length
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        reason = one_line(error)
        raise CheckpointError(f"{path}: truncated, damaged, or no safetensors: {reason}") from error
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(header_size))  # which is JSON, as was checked
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {}
    for name in names:
        info = header[name]
        if info["dtype"] not in SAFETENSORS_DTYPES:
            raise CheckpointError(
                f"{path}: {one_line(name)} has dtype {info['dtype']}, which is unknown"
            )
        dtype = np.dtype(SAFETENSORS_DTYPES[info["dtype"]])
        start, end = info["data_offsets"]
        count, offset = (end - start) // dtype.itemsize, 8 + header_size + start
        array = np.frombuffer(data, dtype, count, offset) if count else np.empty(0, dtype)
        tensors[name] = array.reshape(info["shape"])
    return tensors


def write_torch(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray | Mapping[str, Any]]
) -> None:
    """Writes arrays, or nested dicts of them, by `torch.save`: wholly or not at all.

    Raises:
        CheckpointError: PyTorch is not installed.
    """
    torch, path = _torch(), Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("xb") as file:
            torch.save(_tensors(torch, tensors), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _torch() -> types.ModuleType:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            "PyTorch's files need PyTorch: pip install stylecrafter_jax[torch]"
        ) from error
    return torch


class _Inert:
    """Stands for an object of a training framework; takes any state and keeps none."""

    def __init__(self, *args: Any, **kwargs: Any):
        del args, kwargs

    def __setstate__(self, state: Any):
        del state


def _load_pickle(path: Path) -> Any:
    """Returns the object in a file of `torch.save`, its tensors memory-mapped if it is a zip."""
    torch = _torch()
    with path.open("rb") as file:
        zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC  # files of torch < 1.6 are not
    try:
        if zipped:
            _check_zip(path)
        with _inert_classes(torch, path) if zipped else contextlib.nullcontext():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except Exception as error:  # the unpickler raises whatever a damaged file leads to
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path}: wants to run {refused[1]}, which no checkpoint needs; refused"
            ) from error
        detail = one_line((str(error).splitlines() or ["empty"])[0].split(". ")[0])
        raise CheckpointError(
            f"{path}: truncated, damaged, or no PyTorch checkpoint "
            f"({type(error).__name__}: {detail})"
        ) from error


def _check_zip(path: Path) -> None:
    """Refuses an archive that would unpack to more than it is; `torch.save` compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise CheckpointError(
                f"{path}: {one_line(member.filename)} is compressed to {member.compress_size} of "
                f"{member.file_size} bytes, which PyTorch never does; refused"
            )
    size = path.stat().st_size
    total = sum(member.file_size for member in members)
    if total > size:
        raise CheckpointError(f"{path}: members of {total} bytes in a file of {size}; refused")


def _inert_classes(torch: types.ModuleType, path: Path) -> contextlib.AbstractContextManager:
    """Lets the unpickler make `_Inert` for classes of the packages that train with PyTorch."""
    named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    inert = [(_Inert, name) for name in named if name.split(".")[0] in INERT_PACKAGES]
    return torch.serialization.safe_globals(inert)


def _unwrap(path: Path, content: Any) -> Mapping[Any, Any]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise CheckpointError(f"{path}: wanted a dict of tensors, got {kind}")
    return content


def _arrays(
    path: Path, content: Mapping[Any, Any], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the names and arrays of a state dict, those of nested ones under their own name."""
    torch = _torch()
    for key, value in content.items():
        if not isinstance(key, str | int):
            raise CheckpointError(f"{path}: a name in it is {type(key).__name__}, wanted a text")
        name = f"{prefix}{key}"
        where = f"{path}: {one_line(name)}"
        if isinstance(value, Mapping):
            if depth == DEEPEST:
                raise CheckpointError(f"{where} is nested more than {DEEPEST} deep")
            yield from _arrays(path, value, f"{name}.", depth + 1)
        elif not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{where} is {type(value).__name__}, wanted a tensor")
        elif value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"{where} is sparse, quantized or empty, wanted a dense tensor")
        elif value.numel() * value.element_size() > path.stat().st_size:
            raise CheckpointError(f"{where} has {value.numel()} values, more than the file holds")
        else:
            yield name, _array(torch, value, where)


def _array(torch: types.ModuleType, value: Any, where: str) -> np.ndarray:
    """Returns a dense tensor as an array over the same memory."""
    if str(value.dtype).startswith("torch.float8"):
        raise CheckpointError(f"{where} has dtype {value.dtype}, wanted 16 or 32 bits")
    try:
        if value.dtype == torch.bfloat16:
            return value.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.detach().numpy()
    except (TypeError, RuntimeError) as error:  # bits, complex numbers to be conjugated, and so on
        raise CheckpointError(f"{where} is no plain array: {one_line(error)}") from error


def _tensors(torch: types.ModuleType, content: Mapping[str, Any]) -> dict[str, Any]:
    tensors = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            tensors[name] = _tensors(torch, value)
        elif value.dtype == ml_dtypes.bfloat16:
            bits = np.require(value, requirements=("C", "W")).view(np.int16)
            tensors[name] = torch.from_numpy(bits).view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(np.require(value, requirements=("C", "W")))
    return tensors
