"""Small files that claim to be huge: each is refused in one line, before memory is spent."""

import io
import json
import struct
import tarfile
import zlib
from typing import cast

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from stylecrafter_jax.checkpoints.torch_files import CheckpointError, read_tensors
from stylecrafter_jax.commands.convert import read_model
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.data import features, records
from stylecrafter_jax.data.archives import ArrayRecordSource, TarSource
from stylecrafter_jax.data.decode import decode_clip, decode_image, probe_clip
from stylecrafter_jax.data.folders import FolderSource
from stylecrafter_jax.data.pack import pack
from stylecrafter_jax.data.records import BadRecord, DataError, check_caption
from stylecrafter_jax.data.sources import open_source
from stylecrafter_jax.data.tables import read_table
from stylecrafter_jax.foreign import JSONError, one_line, parse_json
from stylecrafter_jax.jobs import JobError, read_list
from stylecrafter_jax.media.images import ImageError, load_style_image
from stylecrafter_jax.media.video import MediaError, read_video, write_frames
from stylecrafter_jax.metrics.videos import read_frames
from stylecrafter_jax.train.runs import read_run
from tests.data.conftest import picture
from tests.fuzz.laws import nothing_left, read_or_refused

SIDE = 100_000


def chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png() -> bytes:
    size = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + body


def jpeg() -> bytes:
    data = bytearray(picture(16, 16))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def webp() -> bytes:
    # The largest that its extended header can say: 2^24 a side.
    head = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2
    return b"RIFF" + struct.pack("<I", len(head) + 4) + b"WEBP" + head


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    data = bytearray(file.getvalue())
    data[6:10] = struct.pack("<HH", 65_535, 65_535)
    return bytes(data)


def bmp() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "BMP")
    data = bytearray(file.getvalue())
    data[18:26] = struct.pack("<ii", SIDE, SIDE)
    return bytes(data)


def tiff() -> bytes:
    file = io.BytesIO()
    Image.new("L", (300, 300)).save(file, "TIFF")
    return file.getvalue().replace(struct.pack("<H", 300), struct.pack("<H", 65_500))


@pytest.mark.parametrize("make", [png, jpeg, webp, gif, bmp, tiff], ids=lambda make: make.__name__)
def test_pictures_of_gigapixels(tmp_path, make):
    path = tmp_path / "x.img"
    path.write_bytes(make())
    found, message = read_or_refused(
        lambda: load_style_image(path), ImageError, name=path.name, megabytes=64
    )
    assert found is None, message
    found, message = read_or_refused(
        lambda: decode_image(path.read_bytes(), 8), BadRecord, megabytes=64
    )
    assert found is None, message
    path = path.rename(tmp_path / "x.png")
    found, message = read_or_refused(
        lambda: read_frames(path), MediaError, name=path.name, megabytes=64
    )
    assert found is None, message


def patched(clip: bytes, box: bytes, at: int, content: bytes) -> bytes:
    data, place = bytearray(clip), clip.index(box) + 4 + at
    data[place : place + len(content)] = content
    return bytes(data)


def refused_clip(folder, media: bytes, megabytes: int = 256) -> str:
    path = folder / "x.mp4"
    path.write_bytes(media)
    found, _ = read_or_refused(
        lambda: read_video(path, 4), MediaError, name=path.name, megabytes=megabytes
    )
    assert found is None
    rng = np.random.default_rng(0)
    for read in (lambda: probe_clip(media), lambda: decode_clip(media, 2, (1, 1), rng)):
        found, message = read_or_refused(read, BadRecord, megabytes=megabytes)
        assert found is None
    return message


@pytest.mark.parametrize("count", [10**5, 10**6, 5 * 10**7, 2**32 - 1])
def test_videos_that_claim_millions_of_frames(tmp_path, clip, count):
    media = patched(clip, b"stsz", 4, struct.pack(">II", 1, count))
    assert f"counts {count} frames in" in refused_clip(tmp_path, media)


def test_videos_whose_frames_claim_gigapixels(tmp_path):
    path = tmp_path / "x.avi"
    with av.open(str(path), "w") as container:
        stream = cast(av.VideoStream, container.add_stream("mjpeg", 8))
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuvj420p"
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    whole = path.read_bytes()
    frame_header = b"\xff\xc0\x00\x11\x08"
    size, claim = (frame_header + struct.pack(">HH", side, side) for side in (32, 65_500))
    assert whole.count(size) == 4
    first = whole.index(size) + len(size)
    # Of all frames, and of all but the first, at which FFmpeg looks beforehand.
    for bomb in (whole.replace(size, claim), whole[:first] + whole[first:].replace(size, claim)):
        path.write_bytes(bomb)
        found, _ = read_or_refused(
            lambda: read_video(path, 4), MediaError, name=path.name, megabytes=256
        )
        assert found is None or found[0].shape == (1, 32, 32, 3)
        rng = np.random.default_rng(0)
        clip, _ = read_or_refused(
            lambda bomb=bomb, rng=rng: decode_clip(bomb, 4, (1, 1), rng), BadRecord, megabytes=256
        )
        assert clip is None


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{secret}'\n",
        "<?xml version='1.0'?><MPD><BaseURL>file://{secret}</BaseURL></MPD>",
        "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    ],
    ids=["hls", "concat", "dash", "sdp"],
)
def test_a_playlist_opens_no_other_file(tmp_path, clip, text):
    (tmp_path / "secret.mp4").write_bytes(clip)
    message = refused_clip(tmp_path, text.format(secret=tmp_path / "secret.mp4").encode())
    assert "none of MP4" in message


@pytest.mark.parametrize("name", ["x.webp", "x.gif", "x.mp4"])
def test_animations_longer_than_memory_are_refused(tmp_path, monkeypatch, name):
    levels = 12 * np.arange(20, dtype=np.uint8)[:, None, None, None]
    frames = np.tile(levels, (1, 16, 16, 3))
    monkeypatch.setattr("stylecrafter_jax.metrics.videos.MOST_PIXELS", 5 * 16 * 16)
    monkeypatch.setattr("stylecrafter_jax.media.video.MOST_PIXELS", 5 * 16 * 16)
    write_frames(frames, tmp_path / name, fps=8)
    with pytest.raises(MediaError, match="million"):
        read_frames(tmp_path / name)


@pytest.mark.parametrize("length", [0, 2**20, 2**32, 2**62, 2**64 - 1])
def test_safetensors_headers_of_any_claimed_length(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + save({"a": np.ones(3, np.float32)})[8:])
    found, _ = read_or_refused(
        lambda: read_tensors(path), CheckpointError, name=path.name, megabytes=64
    )
    assert found is None


def header_of_tar(name: str, kind: bytes, size: bytes, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    block = bytearray(info.tobuf())
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


HUGE = {
    "8 GB": b"77777777777\0",
    "2^62": b"\x80\0\0\0" + struct.pack(">Q", 2**62),
    "2^88": b"\x80" + b"\xff" * 11,
    "negative": b"\xff" * 12,
}


@pytest.mark.parametrize("size", HUGE)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_tar_headers_that_lie_about_sizes(tmp_path, kind, size):
    media = picture(12, 20)
    good = tarfile.TarInfo("a.jpg")
    good.size = len(media)
    body = good.tobuf() + media + bytes(-len(media) % 512)
    path = tmp_path / "x.tar"
    path.write_bytes(body + header_of_tar("b.jpg", kind, HUGE[size]) + media + bytes(1024))
    source, _ = read_or_refused(lambda: TarSource(path), DataError, name=path.name, megabytes=64)
    assert source is not None
    for index in range(len(source)):
        found, _ = read_or_refused(lambda index=index: source[index], BadRecord, megabytes=64)
        assert found is None  # "a" has no caption, "b" is not there


def test_tar_names_lead_nowhere(tmp_path):
    file, media = io.BytesIO(), picture(12, 20)
    victim = tmp_path / "victim.txt"
    victim.write_text("secret")
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for stem in ("../../up", "/absolute", "a/../../b", "plain", "new\nline"):
            for name, content in ((f"{stem}.jpg", media), (f"{stem}.txt", b"a cat")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("link.txt")
            info.type, info.linkname, info.devmajor, info.devminor = kind, str(victim), 1, 5
            archive.addfile(info)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x.tar").write_bytes(file.getvalue())
    with nothing_left(tmp_path), nothing_left(folder):
        source = TarSource(folder)
        found = [source[index] for index in range(len(source))]
    assert [record.caption for record in found] == ["a cat"] * 5
    assert all(record.media == media for record in found)
    assert source.id(4) == "x.tar/new line"


def test_tables_name_no_pipe_and_no_device(tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture(12, 20))
    rows = [{"file": "a.jpg", "text": "x", "style": s} for s in ("/dev/zero", "/dev/stdin", "a\0b")]
    rows += [{"file": f, "text": "x"} for f in ("x" * 5000 + ".jpg", "a.jpg/b.jpg", "\ud800.jpg")]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FolderSource(tmp_path)
    for index in range(len(rows)):
        source.id(index).encode()
        found, message = read_or_refused(lambda index=index: source[index], BadRecord)
        assert found is None and message in ("the file is missing", "its name can be no file's")


NESTED = b"[" * 100_000 + b"]" * 100_000
NUMBERS = {
    "nested": NESTED,
    "objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "digits": b"9" * 1_000_000,
    "nan": b'{"a": NaN}',
    "infinity": b"[-Infinity]",
    "latin": b'"\xe9"',
    "surrogate": b'{"\\ud800": 1}',
}


@pytest.mark.parametrize("name", NUMBERS)
def test_json_bombs(tmp_path, name):
    data = NUMBERS[name]
    path = tmp_path / "x.json"
    path.write_bytes(data)
    found, message = read_or_refused(lambda: parse_json(data), JSONError, megabytes=256)
    assert (found is None) == (name != "surrogate") and (message is None or len(message) < 300)
    readers = [(lambda: read_list(path), JobError), (lambda: read_model(path), ConfigError)]
    (tmp_path / "run.json").write_bytes(data)
    (tmp_path / features.FEATURES_FILE).write_bytes(data)
    (tmp_path / "t.jsonl").write_bytes(data)
    readers += [
        (lambda: read_run(tmp_path), ConfigError),
        (lambda: features.read_notes(tmp_path), DataError),
        (lambda: read_table(tmp_path / "t.jsonl"), DataError),
    ]
    for magic, read in ((records.MAGIC, records.from_bytes), (features.MAGIC, features.from_bytes)):
        media = struct.pack("<4sI", magic, len(data)) + data
        readers.append((lambda read=read, media=media: read(media), BadRecord))
    for read, error in readers:
        found, _ = read_or_refused(read, error, megabytes=256)
        assert found is None


def test_captions_of_megabytes(tokenizer):
    found, message = read_or_refused(lambda: check_caption("a " * 5_000_000), BadRecord)
    assert found is None and "10000" in message
    assert check_caption("a" * 10_000)


def test_messages_are_short_and_show_no_control_characters():
    assert one_line("a\n\tb  c\x1b[2J\ud800") == r"a b c\x1b[2J\ud800"
    assert len(one_line("x" * 10**7)) < 300


def test_shards_that_are_cut_off_anywhere(photos, tmp_path):
    pack(open_source(photos), tmp_path / "shards", threads=1)
    (shard,) = (tmp_path / "shards").glob("*.array_record")
    whole, path = shard.read_bytes(), tmp_path / "x.array_record"
    for length in np.linspace(0, len(whole) - 1, 25).astype(int):
        path.write_bytes(whole[:length])
        source, _ = read_or_refused(lambda: ArrayRecordSource(path), DataError, name=path.name)
        assert source is None
