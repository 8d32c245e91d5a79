"""Pictures and videos with damage: style images, frames to evaluate, training records."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stylecrafter_jax.data.decode import decode_clip, decode_image, probe_clip
from stylecrafter_jax.data.records import BadRecord
from stylecrafter_jax.media.images import ImageError, load_style_image
from stylecrafter_jax.media.video import MediaError, read_video, write_frames
from stylecrafter_jax.metrics.videos import read_frames
from tests.data.conftest import numbered_clip
from tests.fuzz.laws import bytes_like, fuzzed, nothing_left, read_or_refused


def encoded(form: str, mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 4), dtype=np.uint8)
    image, file = Image.fromarray(pixels, "RGBA").convert(mode), io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def floats() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((12, 12), np.nan, np.float32)).save(file, "TIFF")
    return file.getvalue()


def animation(form: str) -> bytes:
    file, frames = io.BytesIO(), [Image.new("RGB", (12, 12), (9 * i, 0, 0)) for i in range(4)]
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=40)
    return file.getvalue()


PICTURES = {
    "jpg": [encoded("JPEG"), encoded("JPEG", "L", progressive=True), encoded("JPEG", "CMYK")],
    "png": [encoded("PNG"), encoded("PNG", "RGBA"), encoded("PNG", "P"), encoded("PNG", "I;16")],
    "webp": [encoded("WEBP"), encoded("WEBP", "RGBA", lossless=True)],
    "bmp": [encoded("BMP"), encoded("BMP", "P")],
    "tiff": [encoded("TIFF"), encoded("TIFF", compression="tiff_lzw"), floats()],
    "gif": [encoded("GIF", "P"), animation("GIF")],
}


@pytest.mark.parametrize("form", PICTURES)
def test_damaged_pictures(tmp_path, form):
    path = tmp_path / f"x.{form}"

    @fuzzed(60)
    @given(bytes_like(*PICTURES[form]))
    def law(data):
        path.write_bytes(data)
        with nothing_left(tmp_path):
            found, _ = read_or_refused(
                lambda: load_style_image(path, 16), ImageError, name=path.name, megabytes=1600
            )
            assert found is None or (found.shape, found.dtype) == ((16, 16, 3), np.uint8)
            image, _ = read_or_refused(lambda: decode_image(data, 8), BadRecord)
            assert image is None or image.mode == "RGB"

    law()


@pytest.mark.parametrize("form", ["png", "webp"])
def test_damaged_frames_to_evaluate(tmp_path, form):
    path = tmp_path / f"0000.{form}"

    @fuzzed(40)
    @given(bytes_like(PICTURES[form][0], animation(form.upper())))
    def law(data):
        path.write_bytes(data)
        found, _ = read_or_refused(lambda: read_frames(path), MediaError, name=path.name)
        assert found is None or found.shape[-1] == 3

    law()


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif", "avi"])
def test_damaged_videos(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    whole = video(tmp_path, suffix)

    @fuzzed(50, long=3000)
    @given(bytes_like(whole), st.sampled_from([1, 3]), st.integers(0, 2))
    def law(data, frames, seed):
        path.write_bytes(data)
        with nothing_left(tmp_path):
            found, _ = read_or_refused(
                lambda: read_video(path, 8), MediaError, name=path.name, megabytes=1600
            )
            assert found is None or (found[0].shape[-1] == 3 and found[1] > 0)
        clip, _ = read_or_refused(lambda: probe_clip(data), BadRecord)
        assert clip is None or clip.fps > 0
        rng = np.random.default_rng(seed)
        decoded, _ = read_or_refused(
            lambda: decode_clip(data, frames, (1, 2), rng), BadRecord, megabytes=1600
        )
        assert decoded is None or (len(decoded[0]) == frames and decoded[1] > 0)

    law()


def video(folder, suffix: str) -> bytes:
    if suffix == "mp4":
        return numbered_clip(folder / "whole.mp4", 6)
    if suffix == "gif":
        pixels = np.zeros((6, 16, 16, 3), np.uint8)
        write_frames(pixels, folder / "whole.gif", fps=8)
        return (folder / "whole.gif").read_bytes()
    import av

    path, codec = folder / f"whole.{suffix}", {"webm": "libvpx-vp9", "avi": "mpeg4"}[suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 8)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for level in range(6):
            pixels = np.full((32, 32, 3), 40 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()
