"""One training record: encoded media, its caption and where it came from; and its bytes.

A record's bytes, all integers little-endian:

    4 bytes    b"SCRD"
    4 bytes    n, length of the header
    n bytes    the header, UTF-8 JSON: version (1), kind ("image" or "video"), caption, id, and
               sizes, the lengths of what follows
    the media, then the style images, each encoded as it came (JPEG, PNG, MP4, ...)
"""

import dataclasses
import itertools
import json
import struct
from typing import Any, Literal

from stylecrafter_jax.foreign import one_line, parse_json

MAGIC = b"SCRD"
VERSION = 1
# The text encoder reads less than 77 words; the rules that clean captions take long for a book.
LONGEST_CAPTION = 10_000
LONGEST_ID = 500  # in reports
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif")
_PREFIX = struct.Struct("<4sI")


class DataError(ValueError):
    """A data set cannot be used; the message is one line that names it."""


class BadRecord(ValueError):
    """One record cannot be used; the message is the reason, in one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One picture or clip as it was stored.

    Attributes:
        kind: what `media` holds.
        media: an encoded image or video file.
        caption: what it shows, as it was written.
        id: where it came from, for reports.
        styles: encoded style images; empty if the media are their own style reference.
    """

    kind: Literal["image", "video"]
    media: bytes
    caption: str
    id: str
    styles: tuple[bytes, ...] = ()


def media_kind(name: str) -> Literal["image", "video"] | None:
    """Returns what a file of this name or suffix holds; None if it is neither image nor video."""
    name = name.lower()
    if name.endswith(IMAGE_SUFFIXES):
        return "image"
    return "video" if name.endswith(VIDEO_SUFFIXES) else None


def check_caption(value: Any) -> str:
    """Returns a caption without the space around it.

    Raises:
        BadRecord: there is none, it is empty, of over `LONGEST_CAPTION` letters, or not a text.
    """
    if value is None:
        raise BadRecord("it has no caption")
    if not isinstance(value, str):
        raise BadRecord(f"the caption must be a text, got {one_line(repr(value), 60)}")
    if not value.strip():
        raise BadRecord("the caption is empty")
    if len(value) > LONGEST_CAPTION:
        raise BadRecord(f"a caption of {len(value)} letters, wanted at most {LONGEST_CAPTION}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadRecord("the caption holds halves of characters, which no encoding can")
    return value.strip()


def check_media(media: bytes) -> bytes:
    """Returns the bytes of a file.

    Raises:
        BadRecord: there are none.
    """
    if not media:
        raise BadRecord("the file has zero bytes")
    return media


def to_bytes(record: Record) -> bytes:
    """Returns the bytes described at the top of this file."""
    header = {
        "version": VERSION,
        "kind": record.kind,
        "caption": record.caption,
        "id": record.id,
        "sizes": [len(part) for part in (record.media, *record.styles)],
    }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return b"".join((_PREFIX.pack(MAGIC, len(text)), text, record.media, *record.styles))


def from_bytes(data: bytes) -> Record:
    """Returns the record that `to_bytes` made these bytes of.

    Raises:
        BadRecord: the bytes are no record, are cut off, or are of a later version.
    """
    if not data:
        raise BadRecord("the record is empty: its shard may be cut off")
    try:
        magic, length = _PREFIX.unpack_from(data)
        if magic != MAGIC:
            raise BadRecord("not a record of this package")
        start = _PREFIX.size + length
        header = parse_json(data[_PREFIX.size : start])
        version, sizes = header["version"], header["sizes"]
        if version != VERSION:
            raise BadRecord(
                f"a record of version {one_line(version)}, this package reads {VERSION}"
            )
        if min(sizes) < 0:
            raise BadRecord(f"a damaged record: part of it has {min(sizes)} bytes")
        ends = list(itertools.accumulate(sizes, initial=start))
        if ends[-1] != len(data):
            raise BadRecord(f"the record should have {ends[-1]} bytes, got {len(data)}")
        media, *styles = (data[begin:end] for begin, end in itertools.pairwise(ends))
        kind, caption, name = header["kind"], check_caption(header["caption"]), header["id"]
        if kind not in ("image", "video") or not isinstance(name, str):
            raise BadRecord(f"wanted an image or video with an id, got {one_line(repr(kind), 60)}")
    except BadRecord:
        raise
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise BadRecord(f"a damaged record: {one_line(error)}") from error
    return Record(kind=kind, media=media, caption=caption, id=name, styles=tuple(styles))
