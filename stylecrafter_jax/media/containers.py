"""Video files opened as what they are: a few known containers, whose headers may not lie.

FFmpeg knows hundreds of formats; some are texts that make it open other files or addresses. Here
the first bytes decide, and nothing else is tried.
"""

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from stylecrafter_jax.foreign import one_line

# Of one frame: Pillow warns above this many pixels; a file of that size is a mistake or an attack.
LARGEST_FRAME = 89_478_485
MOST_BOXES = 100_000
# Name of FFmpeg's demuxer -> (place, bytes there).
MAGIC = {
    "matroska": ((0, b"\x1aE\xdf\xa3"),),
    "gif": ((0, b"GIF8"),),
    "avi": ((0, b"RIFF"), (8, b"AVI ")),
}
BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid")
_BOX = struct.Struct(">I4s")


class VideoError(ValueError):
    """A video file cannot be read; the message is the reason, in one line."""


class OpenVideo:
    """A context manager: the container and the first video stream of a file or of bytes.

    Inside of it, FFmpeg's errors become `VideoError` too.

    Attributes:
        container: as PyAV has it.
        stream: whose frames have at most `LARGEST_FRAME` pixels; decoding others fails.
        rate: frames per second.

    Raises:
        VideoError: it is none of MP4, QuickTime, WebM, Matroska, AVI and GIF, is damaged, claims
            more than it has, or has no video stream, no frame rate, or larger frames.
    """

    def __init__(self, source: bytes | Path):
        self._source = source

    def __enter__(self) -> "OpenVideo":
        try:
            source = self._source
            self._file = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        except OSError as error:
            raise VideoError(error.strerror or one_line(error)) from error
        try:
            form = _container(self._file)
            self._file.seek(0)
            # Names in a file may be in any encoding; nothing here reads them.
            opened = av.open(self._file, format=form, metadata_errors="replace")
            self.container = cast(InputContainer, opened)
        except FFmpegError as error:
            self._file.close()
            raise VideoError(error.strerror or one_line(error)) from error
        except BaseException:
            self._file.close()
            raise
        try:
            self.stream, self.rate = _stream(self.container)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._close()
        if isinstance(error, FFmpegError):
            raise VideoError(error.strerror or one_line(error)) from error
        if isinstance(error, OverflowError | UnicodeDecodeError):  # PyAV, of an absurd header
            raise VideoError(one_line(error)) from error

    def _close(self) -> None:
        self.container.close()
        self._file.close()


def _stream(container: InputContainer) -> tuple[VideoStream, Fraction]:
    if not container.streams.video:
        raise VideoError("it has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise VideoError("its codec is unknown")
    h, w = stream.height, stream.width
    if h * w > LARGEST_FRAME:
        raise VideoError(f"frames of {h}x{w} pixels are more than {LARGEST_FRAME // 10**6} million")
    # What the header says is not what the frames must say.
    stream.codec_context.options = {"max_pixels": str(LARGEST_FRAME)}
    rate = stream.average_rate or stream.base_rate
    if not rate or rate < 0:
        raise VideoError("it has no frame rate")
    return stream, rate


def _container(file: io.BufferedIOBase) -> str:
    """Returns FFmpeg's name of a file's container, after looking for claims that cannot be true."""
    first = file.read(16)
    for name, places in MAGIC.items():
        if all(first[at : at + len(magic)] == magic for at, magic in places):
            return name
    if first[4:8] not in BOXES:
        raise VideoError("it is none of MP4, QuickTime, WebM, Matroska, AVI and GIF")
    _check_boxes(file)
    return "mp4"


def _check_boxes(file: io.BufferedIOBase) -> None:
    """Checks how many samples the headers of an MP4 count.

    FFmpeg makes an entry of 72 bytes for each before it reads the first, and where all have one
    size a header may count any number of them. Each has at least one byte in the file.

    Raises:
        VideoError: there are more than bytes; or a header is packed, or not where headers are.

    Source: ISO/IEC 14496-12, 8.7.3 (`stsz`, `stz2`) and 8.8.8 (`trun`).
    """
    end, at = file.seek(0, io.SEEK_END), 0
    for _ in range(MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < _BOX.size:
            return
        size, kind = _BOX.unpack_from(head)
        if size == 1 and len(head) == 16:
            size = int.from_bytes(head[8:], "big")
        if size < _BOX.size:  # 0 means up to the end; other values are damage
            size = end - at
        if kind != b"mdat":
            file.seek(at + _BOX.size)
            _check_header(file.read(max(0, min(size, end - at) - _BOX.size)), end)
        at += size
    raise VideoError(f"it has over {MOST_BOXES} boxes")


def _check_header(content: bytes, length: int) -> None:
    if b"mdat" in content or b"cmov" in content:
        raise VideoError("its header is packed, or holds frames")
    # Version and flags, then in `stsz` and `stz2` the size of all samples, then their number.
    for kind, place in ((b"stsz", 12), (b"stz2", 12), (b"trun", 8)):
        at = content.find(kind)
        while at >= 0:
            count = int.from_bytes(content[at + place : at + place + 4], "big")
            if count > length:
                raise VideoError(f"its header counts {count} frames in {length} bytes")
            at = content.find(kind, at + 4)
