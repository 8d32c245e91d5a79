"""What a source holds: counts, sizes, captions, problems, and a sheet of training triples."""

import dataclasses
import io
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from stylecrafter_jax.data.captions import RULES
from stylecrafter_jax.data.decode import probe_clip
from stylecrafter_jax.data.pack import Requirements, check
from stylecrafter_jax.data.records import BadRecord, Record
from stylecrafter_jax.data.sources import Source
from stylecrafter_jax.data.transforms import Pictures
from stylecrafter_jax.tokenizer import Tokenizer

SHEET_FRAMES = 4
SHOWN_REFUSALS = 20
TEXT_WIDTH, TEXT_SIZE, MARGIN = 320, 15, 6


@dataclasses.dataclass(kw_only=True)
class Survey:
    """What was found; lists have one number for each usable record, in the order looked at.

    Attributes:
        name: of the source.
        records: how many it has.
        images: usable pictures.
        videos: usable videos.
        own_styles: usable records with style images of their own.
        bytes: sizes of the media files.
        sides: shorter sides, in pixels.
        aspects: longer over shorter sides.
        frames: frames of videos.
        rates: frames per second of videos.
        tokens: token ids of the cleaned captions, start and end included, after they are cut.
        changed: captions that cleaning changed.
        cut: captions that do not fit.
        refused: (id, reason) of records that cannot be used.
    """

    name: str
    records: int
    images: int = 0
    videos: int = 0
    own_styles: int = 0
    bytes: list[int] = dataclasses.field(default_factory=list)
    sides: list[int] = dataclasses.field(default_factory=list)
    aspects: list[float] = dataclasses.field(default_factory=list)
    frames: list[int] = dataclasses.field(default_factory=list)
    rates: list[float] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)
    changed: int = 0
    cut: int = 0
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def survey(
    source: Source,
    indices: Iterable[int],
    tokenizer: Tokenizer,
    *,
    captions: str = "clean",
    requirements: Requirements | None = None,
    progress: Callable[[int], object] = lambda records: None,
) -> Survey:
    """Returns what some records of a source are; all of them are decoded.

    Args:
        source: of `Record`s.
        indices: which records.
        tokenizer: counts tokens.
        captions: how captions are cleaned; see `captions.RULES`.
        requirements: what a usable record has.
        progress: called with a number of finished records.
    """
    found = Survey(name=source.name, records=len(source))
    for index in indices:
        try:
            record = source[index]
            check(record, requirements or Requirements())
            _add(found, record, tokenizer, captions)
        except BadRecord as error:
            found.refused.append((source.id(index), str(error)))
        progress(1)
    return found


def describe(found: Survey) -> str:
    """Returns a survey as lines of text."""
    usable = found.images + found.videos
    looked = usable + len(found.refused)
    lines = [
        f"{found.name}: {found.records} records, {looked} looked at",
        f"{found.images} pictures, {found.videos} videos, {len(found.refused)} refused; "
        f"{found.own_styles} with style images of their own",
    ]
    rows = (
        ("file size, kB", [size / 1000 for size in found.bytes]),
        ("shorter side", found.sides),
        ("longer / shorter", found.aspects),
        ("frames", found.frames),
        ("frames per second", found.rates),
        ("caption tokens", found.tokens),
    )
    for name, values in rows:
        if values:
            middle = statistics.median(values)
            lines.append(f"{name:18} {min(values):8.5g} {middle:8.5g} {max(values):8.5g}")
    if usable:
        lines.insert(2, f"{'':18} {'least':>8} {'median':>8} {'most':>8}")
        lines.append(f"{found.changed} captions are changed by cleaning, {found.cut} are too long")
    lines += [f"refused: {name}: {reason}" for name, reason in found.refused[:SHOWN_REFUSALS]]
    if len(found.refused) > SHOWN_REFUSALS:
        lines.append(f"refused: {len(found.refused) - SHOWN_REFUSALS} more")
    return "\n".join(lines)


def sheet(rows: Sequence[Pictures], tile: int = 160) -> UInt8[np.ndarray, "y x 3"]:
    """Returns one picture with a row for each example: style crop, target frames, caption.

    Args:
        rows: at least one example; of a clip, four evenly spaced frames are shown.
        tile: height of a row in pixels.

    Raises:
        ValueError: there is no example.
    """
    if not rows:
        raise ValueError("there is no example to show")
    pictures = [[*row.style, *_some(row.pixels)] for row in rows]
    tiles = [[_fit(image, tile) for image in images] for images in pictures]
    shown = max(sum(image.width + MARGIN for image in images) for images in tiles)
    page = Image.new("RGB", (shown + TEXT_WIDTH, (tile + MARGIN) * len(rows)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(TEXT_SIZE)
    for number, (images, row) in enumerate(zip(tiles, rows, strict=True)):
        x, y = 0, number * (tile + MARGIN)
        for image in images:
            page.paste(image, (x, y))
            x += image.width + MARGIN
        lines = textwrap.wrap(row.caption, TEXT_WIDTH // (TEXT_SIZE // 2))
        draw.text((shown, y), "\n".join(lines[: tile // (TEXT_SIZE + 4)]), "black", font)
    return np.asarray(page)


def _add(found: Survey, record: Record, tokenizer: Tokenizer, captions: str) -> None:
    """Adds one usable record."""
    if record.kind == "video":
        clip = probe_clip(record.media)
        h, w = clip.height, clip.width
        found.frames.append(len(clip.times))
        found.rates.append(clip.fps)
        found.videos += 1
    else:
        w, h = Image.open(io.BytesIO(record.media)).size
        found.images += 1
    found.bytes.append(len(record.media))
    found.sides.append(min(h, w))
    found.aspects.append(max(h, w) / min(h, w))
    caption = RULES[captions](record.caption)
    found.tokens.append(int(np.argmax(tokenizer([caption])[0] == tokenizer.end)) + 1)
    found.changed += caption != record.caption
    found.cut += tokenizer.lost_text(caption) is not None
    found.own_styles += bool(record.styles)


def _some(frames: UInt8[np.ndarray, "f h w 3"]) -> UInt8[np.ndarray, "k h w 3"]:
    chosen = np.linspace(0, len(frames) - 1, min(SHEET_FRAMES, len(frames))).round().astype(int)
    return frames[chosen]


def _fit(image: UInt8[np.ndarray, "h w 3"], height: int) -> Image.Image:
    h, w, _ = image.shape
    size = (max(1, round(w * height / h)), height)
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR)
