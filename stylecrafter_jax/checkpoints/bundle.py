"""Our own checkpoint: a folder of config, safetensors by part, and a manifest with hashes.

    config.json      format version and the model's config
    <part>.safetensors, or <part>-00001-of-00005.safetensors ...
    tokenizer/...    optional
    manifest.json    of every other file: size, SHA-256, and its tensors' names, shapes, dtypes

Parts are those of `params.PARTS`, except that the style attention of the UNet lies with the
adapter: a folder without an adapter is a base model.
"""

import hashlib
import json
import operator
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from stylecrafter_jax import params as weights
from stylecrafter_jax.checkpoints.torch_files import CheckpointError, read_safetensors
from stylecrafter_jax.config import ConfigError, ModelConfig
from stylecrafter_jax.config_json import from_dict, to_dict
from stylecrafter_jax.foreign import JSONError, one_line, read_json
from stylecrafter_jax.params import Params

FORMAT_VERSION = 1
SHARD_BYTES = 2**30
LONGEST_NAME = 200
DTYPES = ("float32", "bfloat16", "float16")
Verify = Literal["size", "hash"]
Shapes = Mapping[str, jax.ShapeDtypeStruct]


class FileRecord(NamedTuple):
    """What the manifest says of one file; `tensors` maps names to (dtype, shape)."""

    bytes: int
    sha256: str
    tensors: dict[str, tuple[str, tuple[int, ...]]]


Manifest = dict[str, FileRecord]


def part_of(name: str) -> str:
    """Returns the part that stores a parameter; the style attention belongs to the adapter."""
    return "adapter" if re.search(weights.ADAPTER, name) else name.split("/")[0]


class BundleWriter:
    """Writes a bundle: as a context manager, all of it or nothing.

    Files go to a hidden folder beside `path`, which takes its place at the end. An error or an
    interrupt inside the `with` removes that folder and leaves what was at `path` as it was. At most
    one shard is held in memory, so a part whose tensors come together has the fewest files.

    Raises:
        CheckpointError: `path` exists and `overwrite` is False, or it is no bundle; a tensor has a
            name of no part, comes twice, is not floating point, or is not finite.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: ModelConfig,
        *,
        overwrite: bool = False,
        shard_bytes: int = SHARD_BYTES,
    ):
        self.path = Path(path).resolve()
        self.overwrite, self.shard_bytes = overwrite, shard_bytes
        self._config = config
        self._folder = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.partial")
        self._pending: dict[str, dict[str, np.ndarray]] = {}
        self._pending_bytes: dict[str, int] = {}
        self._shards: dict[str, list[FileRecord]] = {}
        self._files: Manifest = {}
        self._names: set[str] = set()

    def __enter__(self) -> "BundleWriter":
        self._check_target()
        self._folder.mkdir(parents=True)
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, name: str, array: Any) -> None:
        """Adds one parameter, converted to a numpy array."""
        array = np.array(array, order="C", copy=None)
        part = part_of(name)
        if part not in weights.PARTS or name in self._names:
            problem = "comes twice" if name in self._names else "belongs to no part"
            raise CheckpointError(f"{self.path}: parameter {name} {problem}")
        if array.dtype.name not in DTYPES:
            raise CheckpointError(
                f"{self.path}: {name} is {array.dtype.name}, wanted one of {', '.join(DTYPES)}"
            )
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise CheckpointError(
                f"{self.path}: {name} has {bad} of {array.size} values that are NaN or infinite "
                f"as {array.dtype.name}"
            )
        self._names.add(name)
        sizes = self._pending_bytes
        if sizes and sum(sizes.values()) + array.nbytes > self.shard_bytes:
            self._write_shard(max(sizes, key=lambda key: sizes[key]))
        self._pending.setdefault(part, {})[name] = array
        sizes[part] = sizes.get(part, 0) + array.nbytes

    def add_file(self, name: str, content: bytes) -> None:
        """Adds a file, such as `tokenizer/merges.txt`."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._files[name] = _record(path, {})

    def add_files_of(self, bundle: Path) -> None:
        """Adds another bundle's files that are neither weights nor config, such as its tokenizer's.

        Raises:
            CheckpointError: it is no bundle.
        """
        for name, record in read_manifest(bundle).items():
            if not record.tensors and name != "config.json":
                self.add_file(name, (bundle / name).read_bytes())

    def _check_target(self) -> None:
        if not self.path.exists():
            return
        if not self.overwrite:
            raise CheckpointError(f"{self.path} already exists; choose another or overwrite it")
        if not is_bundle(self.path):
            raise CheckpointError(f"{self.path} exists and is no bundle; remove it yourself")

    def _write_shard(self, part: str) -> None:
        del self._pending_bytes[part]
        tensors, shards = self._pending.pop(part), self._shards.setdefault(part, [])
        path = self._folder / f"{part}-{len(shards) + 1:05d}.safetensors"
        save_file(tensors, path, metadata={"format": "stylecrafter_jax"})
        # safetensors writes files that only their owner may read; the folder has the user's umask.
        path.chmod(self._folder.stat().st_mode & 0o666)
        listed = {name: (array.dtype.name, array.shape) for name, array in tensors.items()}
        shards.append(_record(path, listed))

    def _finish(self) -> None:
        for part in list(self._pending):
            self._write_shard(part)
        for part, shards in self._shards.items():
            for i, record in enumerate(shards, start=1):
                suffix = f"-{i:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
                name = f"{part}{suffix}.safetensors"
                os.rename(self._folder / f"{part}-{i:05d}.safetensors", self._folder / name)
                self._files[name] = record
        config = {"format_version": FORMAT_VERSION, "model": to_dict(self._config)}
        self.add_file("config.json", _json(config))
        files = {name: record._asdict() for name, record in sorted(self._files.items())}
        manifest = {"format_version": FORMAT_VERSION, "files": files}
        self.add_file("manifest.json", _json(manifest))
        self._swap()

    def _swap(self) -> None:
        """Puts the finished folder in its place; the old bundle goes only once that is done."""
        self._check_target()
        old = self._folder.with_suffix(".old")
        try:
            if self.path.exists():
                os.rename(self.path, old)
            os.rename(self._folder, self.path)
        except BaseException:
            if old.exists() and not self.path.exists():
                os.rename(old, self.path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Returns whether `path` is a folder with a bundle's config and manifest."""
    return all((Path(path) / name).is_file() for name in ("config.json", "manifest.json"))


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Returns the config of a bundle.

    Raises:
        CheckpointError: there is no bundle, its format is newer, or its config is wrong.
    """
    try:
        return from_dict(ModelConfig, _read_json(Path(path), "config.json", "model"))
    except ConfigError as error:
        raise CheckpointError(f"{path}/config.json: {error}") from error


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Returns the manifest of a bundle: file name -> what it should be.

    Raises:
        CheckpointError: there is no bundle, its format is newer, or its manifest is damaged.
    """
    manifest = {}
    for name, record in _read_json(Path(path), "manifest.json", "files").items():
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise CheckpointError(f"{path}/manifest.json: {one_line(name)} is no name of a file")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{path}/manifest.json: {one_line(name)} lies outside the bundle")
        try:
            tensors = {
                key: (str(dtype), tuple(map(operator.index, dims)))
                for key, (dtype, dims) in record["tensors"].items()
            }
            size = operator.index(record["bytes"])
            manifest[name] = FileRecord(size, str(record["sha256"]), tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path}/manifest.json: {one_line(name)} is damaged: {one_line(repr(error))}"
            ) from error
    return manifest


def load_bundle(
    path: str | os.PathLike[str],
    *,
    expected: Callable[[ModelConfig], Shapes],
    parts: Sequence[str] | None = None,
    verify: Verify = "size",
) -> tuple[ModelConfig, Params]:
    """Returns the config and the parameters of a bundle, memory-mapped and in their stored dtype.

    Args:
        path: the folder.
        expected: config -> shape of every parameter, as `models.networks.parameter_shapes`.
        parts: the parts to load; None: those that the bundle has.
        verify: compare names, shapes, dtypes and file sizes with the manifest, or hashes as well.

    Raises:
        CheckpointError: a part is absent; a file is not as the manifest says; parameters are
            missing, unused or misshapen. All differences are listed.
    """
    path, config, manifest = Path(path), read_config(path), read_manifest(path)
    have = parts_of(manifest)
    parts = have if parts is None else list(parts)
    absent = [part for part in parts if part not in have]
    if absent:
        raise CheckpointError(f"{path} has no {', '.join(absent)}; it has {', '.join(have)}")
    files = {name: manifest[name] for name in manifest if _holds(manifest[name], parts)}
    lines = [line for name in files for line in problems(path / name, files[name], verify)]
    if lines:
        raise CheckpointError(f"{path} is damaged: {'; '.join(lines)}")
    params = {k: v for name in files for k, v in read_safetensors(path / name).items()}
    wanted = {name: shape for name, shape in expected(config).items() if part_of(name) in parts}
    lines = weights.mismatches(wanted, params)
    if lines:
        raise CheckpointError(f"{path} does not fit its config: {'; '.join(lines)}")
    return config, params


def manifest_hash(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a bundle's manifest, which lists the hashes of all its files."""
    return _sha256(Path(path) / "manifest.json")


def part_hash(path: str | os.PathLike[str], part: str) -> str | None:
    """Returns the SHA-256 of a part's names, dtypes, shapes and values; None if it is absent.

    Unlike its files' hashes, it does not depend on the files that the part is split into.
    """
    manifest, digest, tensors = read_manifest(path), hashlib.sha256(), {}
    for name in manifest:
        if _holds(manifest[name], [part]):
            tensors |= read_safetensors(Path(path) / name)
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest() if tensors else None


def parts_of(manifest: Manifest) -> list[str]:
    """Returns the parts that a bundle has."""
    held = {part_of(name) for record in manifest.values() for name in record.tensors}
    return [part for part in weights.PARTS if part in held]


def problems(path: Path, record: FileRecord, verify: Verify) -> list[str]:
    """Returns how a file differs from what the manifest says of it, one line each."""
    if not path.is_file():
        return [f"{path.name} is missing"]
    size = path.stat().st_size
    if size != record.bytes:
        return [f"{path.name} has {size} bytes, wanted {record.bytes}"]
    if verify == "hash" and _sha256(path) != record.sha256:
        return [f"{path.name} has another SHA-256 than the manifest says"]
    if path.suffix != ".safetensors":
        return []
    try:
        tensors = read_safetensors(path)
    except CheckpointError as error:
        return [str(error)]
    found = {name: (array.dtype.name, array.shape) for name, array in tensors.items()}
    wanted = record.tensors
    differing = [k for k in sorted({*found, *wanted}) if found.get(k) != wanted.get(k)]
    return [
        f"{one_line(name)} in {path.name} is {_spell(found.get(name))}, "
        f"wanted {_spell(wanted.get(name))}"
        for name in differing
    ]


def _holds(record: FileRecord, parts: Sequence[str]) -> bool:
    return any(part_of(name) in parts for name in record.tensors)


def _spell(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return one_line(f"{tensor[0]} {tensor[1]}") if tensor else "absent"


def _record(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> FileRecord:
    return FileRecord(path.stat().st_size, _sha256(path, sync=True), tensors)


def _sha256(path: Path, *, sync: bool = False) -> str:
    """Returns the file's SHA-256; `sync` also makes the disk hold what was hashed."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _read_json(path: Path, name: str, key: str) -> dict[str, Any]:
    """Returns the object under `key` of one of a bundle's two JSON files."""
    if not (path / name).is_file():
        raise CheckpointError(f"{path} is no bundle: {name} is missing")
    try:
        content = read_json(path / name)
        version, inner = content["format_version"], content[key]
    except JSONError as error:
        raise CheckpointError(f"{path}/{name} is damaged: no JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}/{name} is damaged: {one_line(repr(error))}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}/{name}: format {one_line(version)}, this program reads {FORMAT_VERSION}"
        )
    if not isinstance(inner, dict):
        raise CheckpointError(f"{path}/{name} is damaged: {key} is {type(inner).__name__}")
    return inner
