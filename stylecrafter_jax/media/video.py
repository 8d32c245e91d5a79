"""Frames to files and back: MP4, GIF, WebP, stills and folders of PNG; contact sheets."""

import contextlib
import io
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import jax
import numpy as np
from av.error import FFmpegError
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image

from stylecrafter_jax.media.containers import OpenVideo, VideoError

SLOWEST, FASTEST = 0.01, 120.0
# Its clock counts hundredths of a second, and players do not show a frame for just one.
FASTEST_GIF = 50.0
# mpeg4's clock has 16 bits: the numerator of a rate, at most FASTEST times this, must fit.
RATE_DENOMINATOR = 500
PALETTE_FRAMES = 16
# Of all frames that are read of a video: more is a mistake or an attack.
MOST_PIXELS = 2**31


class MediaError(OSError):
    """A file cannot be written or read; the message is one line that names it."""


class Quality(NamedTuple):
    """How frames are stored.

    Attributes:
        fps: frames per second.
        crf: constant rate factor of H.264, 0 (best) to 51; 10 is the original's.
        lossless: every pixel is kept, instead of JPEG-like WebP at 90 of 100.
    """

    fps: float | int
    crf: int
    lossless: bool


def to_uint8(x: Float[np.ndarray | jax.Array, "..."]) -> UInt8[np.ndarray, "..."]:
    """Returns pixels in [-1, 1] as 0 to 255: floor((clip(x) + 1) / 2 * 255).

    The original cuts the fraction off instead of rounding, and so do we.

    Raises:
        ValueError: a pixel is not finite.

    Source: StyleCrafter, scripts/evaluation/style_inference.py, save_results.
    """
    x = np.asarray(x, np.float32)
    if not np.isfinite(x).all():
        raise ValueError("frames hold values that are not finite")
    return ((np.clip(x, -1.0, 1.0) + 1.0) / 2.0 * 255.0).astype(np.uint8)


def write_frames(
    frames: UInt8[np.ndarray, "f h w 3"],
    path: str | Path,
    *,
    fps: float | int,
    crf: int = 10,
    lossless: bool = False,
) -> None:
    """Writes frames in the format that the suffix of `path` names, whole or not at all.

    `.mp4` is H.264 (MPEG-4 part 2 where PyAV comes without x264) in yuv420p, which every player
    shows; it needs even sides, so an odd one is extended by repeating its last row or column.
    `.gif` and `.webp` are animations that loop, `.png` and `.jpg` hold one frame, and a path
    without suffix becomes a folder of `00000.png` and so on. A file is overwritten; a folder
    must be new or empty. Nothing but pixels and their timing is stored.

    Args:
        frames: at least one frame.
        path: the file or folder; folders above it are made.
        fps: frames per second, 0.01 to 120, or to 50 for a GIF.
        crf: quality of MP4, from 0 (best) to 51.
        lossless: keep every pixel of a WebP.

    Raises:
        ValueError: the suffix is unknown, or the format cannot hold these frames at this rate.
        MediaError: the file cannot be written, for example since the disk is full.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        known = ", ".join(name or "none (a folder)" for name in WRITERS)
        raise ValueError(f"unknown suffix {path.suffix!r} of {path}; wanted one of {known}")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"wanted uint8 frames of f h w 3, got {frames.dtype} of {frames.shape}")
    fastest = FASTEST_GIF if suffix == ".gif" else FASTEST
    if not SLOWEST <= fps <= fastest:
        raise ValueError(f"wanted {SLOWEST:g} to {fastest:g} frames per second, got {fps:g}")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must be from 0 to 51, got {crf}")
    if suffix in STILLS and len(frames) > 1:
        raise ValueError(f"{suffix} holds one frame, got {len(frames)}")
    if lossless and suffix not in LOSSLESS:
        raise ValueError(f"{suffix} is never lossless; wanted one of .webp, .png or a folder")
    if not suffix and path.is_dir() and any(path.iterdir()):
        raise MediaError(f"cannot write {path}: the folder is not empty")
    with _whole(path) as partial:
        WRITERS[suffix](frames, partial, Quality(fps, crf, lossless))


def read_video(
    path: str | Path, max_frames: int | None = None
) -> tuple[UInt8[np.ndarray, "f h w 3"], float]:
    """Returns the upright frames of a video, at most `max_frames`, and its frames per second.

    Raises:
        MediaError: the file cannot be decoded (see `containers.OpenVideo`), has no frame, has
            frames of different sizes, or of over 2 billion pixels together.
    """
    frames, pixels = [], 0
    try:
        with OpenVideo(Path(path)) as video:
            decoded = video.container.decode(video.stream)
            for frame in itertools.islice(decoded, max_frames):
                pixels += frame.height * frame.width
                if pixels > MOST_PIXELS:
                    raise VideoError(f"its frames have over {MOST_PIXELS // 10**6} million pixels")
                frames.append(_upright(frame))
    except VideoError as error:
        raise MediaError(f"cannot read {path}: {error}") from error
    if len({frame.shape for frame in frames}) != 1:
        problem = "frames of different sizes" if frames else "no frames"
        raise MediaError(f"cannot read {path}: it has {problem}")
    return np.stack(frames), float(video.rate)


def contact_sheet(
    clips: UInt8[np.ndarray, "f h w 3"] | Sequence[UInt8[np.ndarray, "_ _ _ 3"]], columns: int
) -> UInt8[np.ndarray, "y x 3"]:
    """Returns frames side by side in one image; places without a frame are white.

    Args:
        clips: the frames of one clip, all of which are shown row by row; or a list of clips of
            one size, each of which gets a row of evenly spaced frames, first and last included.
        columns: frames per row.

    Raises:
        ValueError: there is no column or no frame, or clips differ in size.
    """
    rows = [clips] if isinstance(clips, np.ndarray) else list(clips)
    sizes = sorted({clip.shape[1:3] for clip in rows if len(clip)})
    if columns < 1 or len(sizes) != 1:
        raise ValueError(f"wanted columns and frames of one size, got {columns} of sizes {sizes}")
    if not isinstance(clips, np.ndarray):
        rows = [
            clip[np.linspace(0, len(clip) - 1, min(columns, len(clip))).round().astype(int)]
            for clip in rows
        ]
    rows = [
        np.pad(row, ((0, -len(row) % columns), (0, 0), (0, 0), (0, 0)), constant_values=255)
        for row in rows
    ]
    return rearrange(np.concatenate(rows), "(r k) h w c -> (r h) (k w) c", k=columns)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yields a path to write to, moved to `path` in the end and removed if anything is raised."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
            partial = Path(folder) / path.name
            yield partial
            os.replace(partial, path)
    except (OSError, FFmpegError) as error:
        raise MediaError(f"cannot write {path}: {error.strerror or error}") from error


def _upright(frame: av.VideoFrame) -> np.ndarray:
    # The file asks for a turn by `rotation` degrees counter-clockwise, as a phone's videos do.
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def _write_mp4(frames: np.ndarray, path: Path, quality: Quality) -> None:
    _, h, w, _ = frames.shape
    # mpeg4 has no rate factor: its quantiser is held at its finest instead.
    codecs = {"libx264": {"crf": str(quality.crf)}, "mpeg4": {"qmin": "1", "qmax": "2"}}
    codec = next(name for name in codecs if name in av.codecs_available)
    with av.open(str(path), "w", format="mp4") as container:
        rate = Fraction(quality.fps).limit_denominator(RATE_DENOMINATOR)
        stream = cast(av.VideoStream, container.add_stream(codec, rate, options=codecs[codec]))
        stream.height, stream.width = h + h % 2, w + w % 2
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            even = np.pad(frame, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(frames: np.ndarray, path: Path, quality: Quality) -> None:
    # One palette for the whole clip: with one per frame, flat colours flicker.
    some = frames[:: math.ceil(len(frames) / PALETTE_FRAMES)]
    palette = Image.fromarray(rearrange(some, "f h w c -> (f h) w c")).quantize(256)
    first, *rest = (Image.fromarray(frame).quantize(palette=palette) for frame in frames)
    durations = [10 * d for d in _durations(len(frames), 100.0 / quality.fps)]
    _save(first, path, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def _write_webp(frames: np.ndarray, path: Path, quality: Quality) -> None:
    first, *rest = map(Image.fromarray, frames)
    durations = _durations(len(frames), 1000.0 / quality.fps)
    timing = {"save_all": True, "append_images": rest, "duration": durations, "loop": 0}
    _save(first, path, "WEBP", lossless=quality.lossless, quality=90, **timing)


def _write_png(frames: np.ndarray, path: Path, quality: Quality) -> None:
    _save(Image.fromarray(frames[0]), path, "PNG")


def _write_jpeg(frames: np.ndarray, path: Path, quality: Quality) -> None:
    _save(Image.fromarray(frames[0]), path, "JPEG", quality=95)


def _write_folder(frames: np.ndarray, path: Path, quality: Quality) -> None:
    path.mkdir()
    for i, frame in enumerate(frames):
        _save(Image.fromarray(frame), path / f"{i:05d}.png", "PNG")


def _save(image: Image.Image, path: Path, kind: str, **options: Any) -> None:
    # Not straight to the file: Pillow takes a short write, as on a full disk, for a whole one.
    encoded = io.BytesIO()
    image.save(encoded, kind, **options)
    path.write_bytes(encoded.getvalue())


def _durations(count: int, ticks: float) -> list[int]:
    """Returns whole ticks per frame whose sums stay within half a tick of `ticks` per frame."""
    ends = [round(i * ticks) for i in range(count + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


WRITERS: dict[str, Callable[[np.ndarray, Path, Quality], None]] = {
    ".mp4": _write_mp4,
    ".gif": _write_gif,
    ".webp": _write_webp,
    ".png": _write_png,
    ".jpg": _write_jpeg,
    ".jpeg": _write_jpeg,
    "": _write_folder,
}
STILLS = (".png", ".jpg", ".jpeg")
LOSSLESS = (".webp", ".png", "")
