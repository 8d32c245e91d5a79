import io
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.data import decode
from stylecrafter_jax.data.decode import decode_clip, decode_image, probe_clip
from stylecrafter_jax.data.records import BadRecord
from tests.data.conftest import frame_numbers, numbered_clip, picture


def save(image: Image.Image, form: str, **options) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, form, **options)
    return encoded.getvalue()


def clip_frames(media, frames, stride, seed=0):
    images, fps = decode_clip(media, frames, stride, np.random.default_rng(seed))
    return frame_numbers(np.stack([np.asarray(image) for image in images])), fps


def test_pictures_become_upright_rgb_on_white():
    rgb = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise
    turned = np.asarray(decode_image(save(rgb, "PNG", exif=exif), 8))
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(rgb), -1))
    clear = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    assert np.asarray(decode_image(save(clear, "PNG"), 8)).min() == 255
    deep = Image.fromarray(np.full((2, 3), 128 * 257, np.uint16))
    np.testing.assert_array_equal(np.asarray(decode_image(save(deep, "PNG"), 8)), 128)
    assert decode_image(save(rgb.convert("CMYK"), "JPEG"), 8).mode == "RGB"


def test_large_jpegs_are_decoded_smaller_but_never_under_twice_the_need():
    media = picture(640, 900)
    assert decode_image(media, 200).size == (900, 640)
    assert decode_image(media, 100).size == (450, 320)


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        (picture(200, 200)[:-300], "cannot decode the picture: .*truncated"),
        (picture(200, 200, form="PNG")[:300], "cannot decode the picture"),
        (b"no picture at all", "not a picture"),
        (b"", "not a picture"),
    ],
)
def test_broken_pictures_are_refused_with_the_reason(media, reason):
    with pytest.raises(BadRecord, match=reason):
        decode_image(media, 100)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_bomb_is_refused_before_it_is_unpacked(side):
    small = save(Image.new("1", (8, 8)), "PNG")
    header = side.to_bytes(4, "big") * 2
    bomb = (
        small[:16] + header + small[24:29] + crc(small[12:16] + header + small[24:29]) + small[33:]
    )
    with pytest.raises(BadRecord, match=r"pixels"):
        decode_image(bomb, 100)


def crc(chunk: bytes) -> bytes:
    return zlib.crc32(chunk).to_bytes(4, "big")


def test_a_clip_says_how_many_frames_it_has(clip):
    found = probe_clip(clip)
    assert len(found.times) == 40
    assert (found.fps, found.height, found.width) == (8.0, 32, 32)


@pytest.mark.parametrize(("frames", "stride"), [(1, 1), (16, 1), (5, 3), (40, 1), (2, 39)])
def test_frames_are_evenly_spaced_from_a_random_start(clip, frames, stride):
    starts = set()
    for seed in range(8):
        numbers, fps = clip_frames(clip, frames, (stride, stride), seed)
        assert np.diff(numbers).tolist() == [stride] * (frames - 1)
        assert fps == 8.0 / stride
        starts.add(numbers[0])
    last_start = 40 - 1 - (frames - 1) * stride
    assert starts <= set(range(last_start + 1))
    assert len(starts) > 1 or last_start == 0


def test_the_space_is_drawn_as_wide_as_the_clip_allows(clip):
    spaces = {
        clip_frames(clip, 10, (2, 9), seed)[0][1] - clip_frames(clip, 10, (2, 9), seed)[0][0]
        for seed in range(30)
    }
    assert spaces == {2, 3, 4}  # 9 * 4 + 1 <= 40 < 9 * 5 + 1


@pytest.mark.parametrize("suffix", [".gif", ".mkv", ".avi", ".webm"])
def test_other_containers_give_the_same_frames(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    if suffix == ".gif":
        numbered_clip(path, 12)
    else:
        codec = {"mkv": "libx264", "avi": "mpeg4", "webm": "libvpx"}[suffix[1:]]
        write_with(path, codec, 12)
    numbers, fps = clip_frames(path.read_bytes(), 4, (2, 2), seed=3)
    assert np.diff(numbers).tolist() == [2, 2, 2]
    assert fps == pytest.approx(4.0, rel=0.05)


def write_with(path: Path, codec: str, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 8)
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 10**6
        for k in range(frames):
            pixels = np.full((32, 32, 3), 4 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def test_long_clips_are_read_from_the_key_frame_before_the_start(tmp_path, monkeypatch):
    media = numbered_clip(tmp_path / "long.mp4", 60)
    decoded = []
    original = decode._decode

    def spy(media, wanted, *, seek):
        decoded.append(seek)
        return original(media, wanted, seek=seek)

    monkeypatch.setattr(decode, "_decode", spy)
    for seed in range(5):
        clip_frames(media, 3, (1, 1), seed)
    assert decoded == [True] * 5  # the slow way was never needed


def test_short_cut_and_wrong_videos_are_refused_with_the_reason(tmp_path, clip):
    short = numbered_clip(tmp_path / "short.mp4", 3)
    with pytest.raises(BadRecord, match="the video has 3 frames, wanted 16"):
        clip_frames(short, 16, (1, 4))
    with pytest.raises(BadRecord, match="cannot decode the video"):
        clip_frames(clip[: len(clip) // 2], 4, (1, 1))
    with pytest.raises(BadRecord, match="cannot decode the video"):
        clip_frames(b"no video", 4, (1, 1))
    with pytest.raises(BadRecord, match="cannot decode the video"):
        clip_frames(b"", 4, (1, 1))


def test_a_video_that_is_cut_off_behind_its_index_is_refused(tmp_path, clip):
    faststart = tmp_path / "fast.mp4"
    with av.open(io.BytesIO(clip)) as source:
        options = {"movflags": "faststart"}
        with av.open(str(faststart), "w", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    media = faststart.read_bytes()
    assert clip_frames(media, 40, (1, 1))[0] == list(range(40))
    with pytest.raises(BadRecord, match=r"cut off: \d+ of 40 frames|cannot decode"):
        clip_frames(media[:-200], 4, (1, 1))
