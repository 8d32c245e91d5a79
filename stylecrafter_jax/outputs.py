"""Results on disk: each with a sidecar that reproduces it, and which of them are there already.

Result and sidecar are written beside their places; then the sidecar is renamed into its place, and
the result after it. A result with a sidecar is finished, a sidecar alone was interrupted, and a
result alone is not ours. What is replaced goes away before the new sidecar comes.
"""

import dataclasses
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from stylecrafter_jax.foreign import one_line, read_json
from stylecrafter_jax.jobs import Job, JobError
from stylecrafter_jax.media.video import contact_sheet, write_frames
from stylecrafter_jax.options import Resolved

SHEET_COLUMNS = 4
DIFFERENCES = 3


def describe_request(
    job: Job, options: Resolved, model: dict[str, Any], hashes: Mapping[Path, str]
) -> dict[str, Any]:
    """Returns everything that decides a result's pixels, as plain JSON values.

    Args:
        job: the result; its path does not matter.
        options: how to generate.
        model: what identifies the bundle and its dtypes.
        hashes: of each style image, its SHA-256.
    """
    chosen = dataclasses.asdict(options)
    chosen.pop("decode_chunk")  # it changes memory, not pixels
    described = {
        "prompt": job.entry.prompt,
        "styles": [{"file": s.name, "sha256": hashes[s]} for s in job.entry.styles],
        "style_weights": job.weights,
        "index": job.index,
        "options": chosen,
        "model": model,
        "format": job.form,
    }
    return json.loads(json.dumps(described))


def is_done(job: Job, request: dict[str, Any], *, overwrite: bool) -> bool:
    """Returns whether the result exists already.

    Raises:
        JobError: something else is in its place: another request's result, or a file that has no
            sidecar; `overwrite` allows both, but for a folder with other files than pictures.
    """
    if not os.path.lexists(job.path):
        return False
    if overwrite:
        _check_replaceable(job.path)
        return False
    if not job.sidecar.exists():
        raise JobError(f"{job.path} exists and is not ours; remove it or use --overwrite")
    try:
        made = read_json(job.sidecar)["request"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{job.sidecar} is damaged; use --overwrite") from error
    lines = list(_differences(made, request))
    if lines:
        more = f" and {len(lines) - DIFFERENCES} more" if len(lines) > DIFFERENCES else ""
        raise JobError(
            f"{job.path} is another result: {'; '.join(lines[:DIFFERENCES])}{more}; "
            "use another --out, or --overwrite"
        )
    return True


def _differences(made: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Yields "options.seed is 1, wanted 2" for every value that differs."""
    if isinstance(made, dict) and isinstance(wanted, dict):
        for key in sorted({*made, *wanted}):
            path = f"{name}.{key}" if name else key
            yield from _differences(made.get(key), wanted.get(key), path)
    elif made != wanted:
        found, asked = one_line(json.dumps(made)), one_line(json.dumps(wanted))
        yield f"{one_line(name) or 'the request'} is {found}, wanted {asked}"


def make_folders(jobs: Sequence[Job]) -> None:
    """Makes the folders that results go to.

    Raises:
        JobError: one cannot be made or written to.
    """
    for folder in dict.fromkeys(job.path.parent for job in jobs):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"cannot make the folder {folder}: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise JobError(f"cannot write into the folder {folder}: Permission denied")


def write_result(
    job: Job,
    frames: UInt8[np.ndarray, "f h w 3"],
    request: dict[str, Any],
    *,
    fps: int,
    notes: dict[str, Any],
) -> None:
    """Writes a result and its sidecar, whole or not at all; what was in their place is replaced.

    Args:
        job: names both.
        frames: the pixels.
        request: what `describe_request` returned.
        fps: frames per second.
        notes: what else to record, such as timings.

    Raises:
        JobError: the disk is full, or the place cannot be written.
    """
    pixels = frames.astype(np.float64) / 255.0
    statistics = {"mean": float(pixels.mean()), "std": float(pixels.std())}
    content = {"request": request, "made_with": versions(), "pixels": statistics, **notes}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if job.form == "sheet":
        frames = contact_sheet(frames, min(SHEET_COLUMNS, len(frames)))[None]
    try:
        job.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=job.path.parent, prefix=".partial-") as folder:
            result, sidecar = Path(folder) / job.path.name, Path(folder) / job.sidecar.name
            write_frames(frames, result, fps=fps)
            # A file name may hold what is no Unicode; JSON spells it as Python does.
            sidecar.write_text(text, encoding="utf-8", errors="backslashreplace")
            _remove(job.path)
            os.replace(sidecar, job.sidecar)
            os.replace(result, job.path)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise JobError(f"cannot write {job.path}: {cause.strerror or cause}") from error


def _check_replaceable(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        other = [p.name for p in path.iterdir() if not re.fullmatch(r"\d{5}\.png", p.name)]
        if other:
            raise JobError(f"{path} is a folder with other files ({other[0]}); remove it yourself")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        _check_replaceable(path)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Returns what programs a result was made with, and on what device."""
    found = {"python": platform.python_version()}
    for name in ("stylecrafter_jax", "jax", "jaxlib", "flax", "numpy", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from its sources
            found[name] = "not installed"
    device = jax.devices()[0]
    return {**found, "device": f"{device.platform} {device.device_kind}"}
