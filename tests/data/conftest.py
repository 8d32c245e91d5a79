"""Small real files: pictures, clips, folders of them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.data.records import Record
from stylecrafter_jax.media.video import write_frames
from stylecrafter_jax.tokenizer import Tokenizer


def picture(height: int, width: int, seed: int = 0, form: str = "JPEG") -> bytes:
    """An encoded picture with some content everywhere."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.save(encoded, form)
    return encoded.getvalue()


def numbered_clip(path: Path, frames: int, size: int = 32, fps: int = 8) -> bytes:
    """A clip whose frame k is grey of level 4 k."""
    levels = 4 * np.arange(frames, dtype=np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (frames, size, size, 3))
    write_frames(np.ascontiguousarray(pixels), path, fps=fps, crf=0)
    return path.read_bytes()


def frame_numbers(pixels: np.ndarray) -> list[int]:
    """Which frames of `numbered_clip` these are."""
    return [round(float(frame.mean()) / 4) for frame in pixels]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 13 pictures with captions beside them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(13):
        (folder / f"{i:02d}.jpg").write_bytes(picture(24 + i, 40, seed=i))
        (folder / f"{i:02d}.txt").write_text(f"a painting of thing {i}")
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> bytes:
    """40 frames at 8 frames per second."""
    return numbered_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 40)


def image_record(media: bytes, caption: str = "a cat", styles: tuple[bytes, ...] = ()) -> Record:
    return Record(kind="image", media=media, caption=caption, id="a.jpg", styles=styles)


def video_record(media: bytes, caption: str = "a cat") -> Record:
    return Record(kind="video", media=media, caption=caption, id="a.mp4")
