"""Finished videos on disk: which file belongs to which prompt, its frames, its hash."""

import hashlib
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageSequence

from stylecrafter_jax.foreign import one_line, read_json, reason
from stylecrafter_jax.jobs import Entry, JobError, sha256
from stylecrafter_jax.media.images import on_white, with_alpha
from stylecrafter_jax.media.video import MOST_PIXELS, MediaError, read_video

STILLS = (".png", ".jpg", ".jpeg")
ANIMATED = (".mp4", ".gif", ".webp", ".webm", ".mov", ".mkv", ".avi")
LISTED = 3


def find_videos(folder: Path, entries: list[Entry], samples: int) -> list[Path]:
    """Returns a list's videos in its order: `0000.mp4`, or `0000_0.mp4` for several samples.

    Any suffix of a video or picture will do, and so will a folder of PNG pictures.

    Raises:
        JobError: one is absent or there are two of a name, or the JSON file that `generate` put
            beside one names another prompt.
    """
    if not folder.is_dir():
        raise JobError(f"there is no folder {folder}")
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (*STILLS, *ANIMATED) or path.is_dir():
            by_stem.setdefault(path.stem, []).append(path)
    numbers = [(i, j) for i in range(len(entries)) for j in range(samples)]
    stems = [f"{i:04d}" if samples == 1 else f"{i:04d}_{j}" for i, j in numbers]
    absent = [stem for stem in stems if stem not in by_stem]
    if absent:
        more = f" and {len(absent) - LISTED} more" if len(absent) > LISTED else ""
        raise JobError(f"{folder} has no video named {', '.join(absent[:LISTED])}{more}")
    for stem in stems:
        if len(by_stem[stem]) > 1:
            names = " and ".join(path.name for path in by_stem[stem])
            raise JobError(f"{folder} has both {names}; which one is meant?")
    found = [by_stem[stem][0] for stem in stems]
    for (i, _), path in zip(numbers, found, strict=True):
        _check_prompt(path, entries[i])
    return found


def _check_prompt(path: Path, entry: Entry) -> None:
    sidecar = path.with_name(path.name + ".json")
    if not sidecar.is_file():
        return
    try:
        prompt = read_json(sidecar)["request"]["prompt"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{sidecar} is damaged; remove it if the video is right") from error
    if prompt != entry.prompt:
        made = one_line(repr(prompt))
        raise JobError(f"{path} was made of {made}, but {entry.where} is {entry.prompt!r}")


def is_still(path: Path) -> bool:
    """Returns whether a path is that of a picture, which holds one frame."""
    return path.suffix.lower() in STILLS


def read_frames(path: Path) -> UInt8[np.ndarray, "f h w 3"]:
    """Returns all frames of a video, picture or folder of PNG pictures.

    Raises:
        MediaError: it cannot be decoded, or its pictures differ in size.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if re.fullmatch(r"\d+\.png", file.name))
        pictures = [frame for file in files for frame in _pictures(file)]
    elif path.suffix.lower() in (*STILLS, ".webp"):
        pictures = _pictures(path)
    else:
        return read_video(path)[0]
    if len({picture.shape for picture in pictures}) != 1:
        raise MediaError(f"cannot read {path}: wanted pictures of one size, numbered 00000.png on")
    return np.stack(pictures)


def _pictures(path: Path) -> list[np.ndarray]:
    try:
        with Image.open(path) as file:
            frames = getattr(file, "n_frames", 1)
            if frames * file.width * file.height > MOST_PIXELS:
                raise MediaError(
                    f"cannot read {path}: {frames} frames of {file.height}x{file.width} pixels are "
                    f"more than {MOST_PIXELS // 10**6} million"
                )
            return [
                np.asarray(on_white(with_alpha(frame))) for frame in ImageSequence.Iterator(file)
            ]
    except MediaError:
        raise
    except Exception as error:  # a decoder may raise anything on a broken file
        raise MediaError(f"cannot read {path}: {reason(error)}") from error


def video_hash(path: Path) -> str:
    """Returns the SHA-256 of a file, or of the names and hashes of a folder's files."""
    if not path.is_dir():
        return sha256(path)
    files = [f"{file.name} {sha256(file)}" for file in sorted(path.iterdir()) if file.is_file()]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()
