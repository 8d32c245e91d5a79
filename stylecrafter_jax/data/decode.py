"""Encoded bytes to pixels: pictures by Pillow, some frames of a clip by PyAV."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from stylecrafter_jax.data.records import BadRecord
from stylecrafter_jax.foreign import reason
from stylecrafter_jax.media.containers import LARGEST_FRAME, OpenVideo, VideoError
from stylecrafter_jax.media.images import on_white, with_alpha

WEB_FORMATS = ("mp4", "mov")


def decode_image(media: bytes, at_least: int) -> Image.Image:
    """Returns a picture upright, as RGB on white, the first frame of an animation.

    Args:
        media: an encoded picture.
        at_least: a JPEG whose shorter side is over four times this is decoded at a half, quarter or
            eighth of its size, with the shorter side still over twice this.

    Raises:
        BadRecord: the bytes are no picture, are cut off, or hold more than 89 million pixels.
    """
    try:
        file = Image.open(io.BytesIO(media))
        w, h = file.size
        if w * h > LARGEST_FRAME:
            raise BadRecord(f"{h}x{w} pixels are more than {LARGEST_FRAME // 10**6} million")
        if min(w, h) > 4 * at_least:
            file.draft(None, (2 * at_least, 2 * at_least))
        return _to_rgb(ImageOps.exif_transpose(file))
    except BadRecord:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadRecord("not a picture of a known format") from error
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on a broken file
        raise BadRecord(f"cannot decode the picture: {reason(error)}") from error


class Clip(NamedTuple):
    """What a video file says of itself; `times` are in the stream's own unit."""

    times: list[int]
    fps: float
    height: int
    width: int


def decode_clip(
    media: bytes, frames: int, stride: tuple[int, int], rng: np.random.Generator
) -> tuple[list[Image.Image], float]:
    """Returns frames of a video, evenly spaced from a random start, and their frames per second.

    The space between frames is drawn from `stride`, both ends included, no wider than the video
    allows. Only the frames from the key frame before the first wanted one are decoded.

    Args:
        media: an encoded video.
        frames: how many.
        stride: the smallest and the largest space, in frames of the file; 1 takes every frame.
        rng: draws the space, then the start.

    Raises:
        BadRecord: the bytes are no video, are cut off, or hold too few frames.
    """
    times, fps, _, _ = probe_clip(media)
    reach = (len(times) - 1) // (frames - 1) if frames > 1 else stride[1]
    if reach < stride[0] or not times:
        wanted = (frames - 1) * stride[0] + 1
        raise BadRecord(f"the video has {len(times)} frames, wanted {wanted}")
    space = int(rng.integers(stride[0], min(stride[1], reach), endpoint=True))
    start = int(rng.integers(0, len(times) - (frames - 1) * space))
    wanted = times[start : start + (frames - 1) * space + 1 : space]
    found = _decode(media, wanted, seek=True)
    if len(found) < frames:  # some containers cannot seek; the slow way always works
        found = _decode(media, wanted, seek=False)
    if len(found) < frames:
        raise BadRecord(f"only {len(found)} of {frames} frames could be decoded")
    if len({image.size for image in found}) > 1:
        raise BadRecord("its frames have different sizes")
    return found, fps / space


def probe_clip(media: bytes) -> Clip:
    """Returns the frame times, rate and size of a video.

    Packets are read but not decoded, which takes about a millisecond for a short clip.

    Raises:
        BadRecord: the bytes are no video, are cut off, or claim what cannot be.
    """
    try:
        with OpenVideo(media) as video:
            stream = video.stream
            packets = [packet for packet in video.container.demux(stream) if packet.size]
            web = video.container.format.name.startswith(WEB_FORMATS)
            declared = stream.frames if web else 0
            h, w = stream.height, stream.width
    except VideoError as error:
        raise BadRecord(f"cannot decode the video: {error}") from error
    if len(packets) < declared:
        raise BadRecord(f"the video is cut off: {len(packets)} of {declared} frames are there")
    times = [p.dts if p.pts is None else p.pts for p in packets if not p.is_discard]
    known = sorted(time for time in times if time is not None)
    if len(known) < len(times):
        raise BadRecord("the video's frames have no times")
    return Clip(known, float(video.rate), h, w)


def _decode(media: bytes, wanted: list[int], *, seek: bool) -> list[Image.Image]:
    """Returns the frames shown at the wanted times, upright; fewer if some are not found."""
    found, left = [], set(wanted)
    try:
        with OpenVideo(media) as video:
            stream = video.stream
            stream.codec_context.thread_count = 1  # records are decoded in parallel already
            if seek:
                video.container.seek(wanted[0], stream=stream)
            for frame in video.container.decode(stream):
                if frame.pts in left:
                    left.remove(frame.pts)
                    # The file asks for a turn by `rotation` degrees counter-clockwise.
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    found.append(Image.fromarray(np.ascontiguousarray(pixels)))
                if not left or (frame.pts is not None and frame.pts > wanted[-1]):
                    break
    except VideoError as error:
        raise BadRecord(f"cannot decode the video: {error}") from error
    return found


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        return on_white(with_alpha(image))
    except ValueError as error:
        raise BadRecord(str(error)) from error
