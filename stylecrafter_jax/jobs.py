"""Which results to make: lists of prompts and style images, formats, and where each result goes."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stylecrafter_jax.foreign import JSONError, one_line, read_json
from stylecrafter_jax.media.images import ImageError, load_style_image
from stylecrafter_jax.media.video import FASTEST, FASTEST_GIF, SLOWEST
from stylecrafter_jax.request import check_prompt

# Format -> the suffix of its files; a folder of numbered pictures has none.
VIDEO_FORMATS = {"mp4": ".mp4", "gif": ".gif", "webp": ".webp", "frames": "", "sheet": ".png"}
IMAGE_FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp"}
# Formats that store a frame rate, and the fastest they can hold.
RATES = {"mp4": FASTEST, "gif": FASTEST_GIF, "webp": FASTEST}
NAME_LENGTH = 40


class JobError(ValueError):
    """A result cannot be made as it was asked for; the message is one line."""


class Entry(NamedTuple):
    """A prompt with its references; `where` names it in messages, and is empty for a single one."""

    prompt: str
    styles: tuple[Path, ...]
    where: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One result to make.

    Attributes:
        entry: its prompt and references.
        index: its number in the run; with the seed it decides the random numbers.
        weights: one per reference, or None.
        path: the result's file, or its folder of pictures.
        form: one of `VIDEO_FORMATS` or `IMAGE_FORMATS`.
    """

    entry: Entry
    index: int
    weights: tuple[float, ...] | None
    path: Path
    form: str

    @property
    def sidecar(self) -> Path:
        return self.path.with_name(self.path.name + ".json")


def read_list(path: Path) -> list[Entry]:
    """Returns the entries of a list in StyleCrafter's test-set format.

    The file is a JSON list of objects with `prompt` and `style_path`, one path or a list of them,
    relative to the file's folder.

    Raises:
        JobError: the file is not such a list; names the entry, counted from 0.

    Source: StyleCrafter, eval_data/README.md and scripts/evaluation/style_inference.py,
    load_data_from_json.
    """
    try:
        values = read_json(path)
    except OSError as error:
        raise JobError(f"cannot read the list {path}: {error.strerror}") from error
    except JSONError as error:
        raise JobError(f"the list {path} is no JSON: {error}") from error
    if not isinstance(values, list) or not values:
        raise JobError(f"{path}: wanted a list of objects with prompt and style_path")
    return [_entry(path, number, value) for number, value in enumerate(values)]


def _entry(path: Path, number: int, value: Any) -> Entry:
    where = f"{path}, entry {number}"
    if not isinstance(value, dict):
        got = one_line(repr(value))
        raise JobError(f"{where}: wanted an object with prompt and style_path, got {got}")
    prompt, styles = value.get("prompt"), value.get("style_path")
    styles = [styles] if isinstance(styles, str) else styles
    if not isinstance(prompt, str):
        raise JobError(f"{where}: prompt must be a text, got {one_line(repr(prompt))}")
    if not isinstance(styles, list) or not styles or not all(isinstance(s, str) for s in styles):
        got = one_line(repr(styles))
        raise JobError(f"{where}: style_path must be a path or a list of paths, got {got}")
    return Entry(prompt, tuple(path.parent / style for style in styles), where)


def check_entries(entries: Sequence[Entry]) -> dict[Path, str]:
    """Returns the SHA-256 of every style image, after decoding each one as it will be.

    Raises:
        JobError: a prompt is no text, there is neither prompt nor style image, or a style image
            cannot be used; names the entry.
    """
    hashes: dict[Path, str] = {}
    for entry in entries:
        where = f"{entry.where}: " if entry.where else ""
        if not entry.prompt.strip() and not entry.styles:
            raise JobError(f"{where}the prompt is empty and there is no style image")
        try:
            check_prompt(entry.prompt)
            for style in entry.styles:
                if style not in hashes:
                    load_style_image(style)
                    hashes[style] = sha256(style)
        except ImageError as error:
            raise JobError(f"{where}style image: {error}") from error
        except ValueError as error:
            raise JobError(f"{where}{error}") from error
    return hashes


def sha256(path: Path) -> str:
    """Returns the hash of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def format_of(out: Path | None, form: str | None, image: bool) -> str:
    """Returns the format: the one named, else that of the suffix of `out`, else the usual one.

    Raises:
        JobError: the format or the suffix is unknown for pictures or videos, or they differ.
    """
    kind, formats = ("a picture", IMAGE_FORMATS) if image else ("a video", VIDEO_FORMATS)
    if form is not None and form not in formats:
        raise JobError(f"{kind} is written as one of {', '.join(formats)}, not as {form}")
    if out is None or not _names_file(out):
        return form or ("png" if image else "mp4")
    suffix = ".jpg" if out.suffix.lower() == ".jpeg" else out.suffix.lower()
    by_suffix = {known: name for name, known in formats.items() if known}
    if suffix not in by_suffix:
        known = ", ".join(by_suffix)
        raise JobError(f"{out}: the suffix of {kind} is one of {known}, not {out.suffix}")
    if form not in (None, by_suffix[suffix]):
        raise JobError(f"{out} is the name of a {by_suffix[suffix]}, but --format is {form}")
    return by_suffix[suffix]


def check_rate(form: str, fps: int) -> None:
    """Raises JobError if a format cannot be played at `fps` frames per second."""
    fastest = RATES.get(form)
    if fastest is not None and not SLOWEST <= fps <= fastest:
        raise JobError(f"{form} holds {SLOWEST:g} to {fastest:g} frames per second, got {fps:g}")


def job_paths(out: Path, count: int, samples: int, form: str, image: bool) -> list[Path]:
    """Returns the path of every result: `out` itself for a single file, else numbered in it.

    Raises:
        JobError: `out` names one file for many results.
    """
    if _names_file(out):
        if count * samples > 1:
            raise JobError(f"{out} names one file but there are {count * samples} results")
        return [out]
    suffix = (IMAGE_FORMATS if image else VIDEO_FORMATS)[form]
    return [
        out / (f"{i:04d}{suffix}" if samples == 1 else f"{i:04d}_{j}{suffix}")
        for i in range(count)
        for j in range(samples)
    ]


def named_after(job: Job, request: dict[str, Any]) -> Job:
    """Returns the job with a file name of its own: words of the prompt and a hash of the request.

    The same request gets the same name, any other one another.
    """
    words = re.sub(r"[^a-z0-9]+", "-", job.entry.prompt.lower()).strip("-")
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    stem = f"{words[:NAME_LENGTH].strip('-')}-{digest[:8]}".lstrip("-")
    return dataclasses.replace(job, path=job.path.with_name(stem + job.path.suffix))


def _names_file(out: Path) -> bool:
    return bool(out.suffix) and not out.is_dir()
