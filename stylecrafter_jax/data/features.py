"""Features of one record, computed beforehand: their bytes, and the transform that trains on them.

A record's bytes, all integers and numbers little-endian:

    4 bytes    b"SCFT"
    4 bytes    n, length of the header
    n bytes    the header, UTF-8 JSON: version (1), id, and either refused, the reason why the
               record cannot be used, or arrays, a list of [name, dtype, shape]
    the arrays in this order, C-contiguous

A record that cannot be used keeps its place, so that the order of training, and what replaces the
record, are those of the data the features were made of. The arrays are `mean` and `logvar` of the
unscaled latents (f y x z), token `ids` (l), `text` tokens (l d), `fps`, and `image`, the image
tokens of all references in a row (n c), which is absent where the stage uses no style.
"""

import dataclasses
import json
import math
import operator
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stylecrafter_jax.data.records import BadRecord, DataError
from stylecrafter_jax.data.transforms import Drop, drop_flags
from stylecrafter_jax.foreign import one_line, parse_json, read_json

MAGIC = b"SCFT"
VERSION = 1
FEATURES_FILE = "features.json"
DTYPES = ("float32", "float16", "int32")
TRAINED_ON = ("mean", "logvar", "text", "fps")
_PREFIX = struct.Struct("<4sI")
# name -> (dtype, shape)
Layout = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureRecord:
    """The features of one record, or why it has none.

    Attributes:
        id: where the record came from, for reports.
        arrays: see the top of this file; empty if it cannot be used.
        refused: the reason; None if it can.
    """

    id: str
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    refused: str | None = None


def to_bytes(record: FeatureRecord) -> bytes:
    """Returns the bytes described at the top of this file."""
    header: dict[str, Any] = {"version": VERSION, "id": record.id}
    if record.refused is not None:
        header["refused"] = record.refused
    else:
        header["arrays"] = [[n, a.dtype.name, list(a.shape)] for n, a in record.arrays.items()]
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    parts = [array.astype(array.dtype.newbyteorder("<")) for array in record.arrays.values()]
    return b"".join((_PREFIX.pack(MAGIC, len(text)), text, *(part.tobytes() for part in parts)))


def from_bytes(data: bytes) -> FeatureRecord:
    """Returns the record that `to_bytes` made these bytes of.

    Raises:
        BadRecord: the bytes are no features, are cut off, or are of a later version.
    """
    try:
        magic, length = _PREFIX.unpack_from(data)
        if magic != MAGIC:
            raise BadRecord("not features of this package")
        at = _PREFIX.size + length
        header = parse_json(data[_PREFIX.size : at])
        if header["version"] != VERSION:
            raise BadRecord(
                f"features of version {one_line(header['version'])}, this package reads {VERSION}"
            )
        if "refused" in header:
            return FeatureRecord(id=str(header["id"]), refused=one_line(header["refused"]))
        arrays = {}
        for name, dtype, shape in header["arrays"]:
            if dtype not in DTYPES:
                found, known = one_line(repr(dtype), 60), ", ".join(DTYPES)
                raise BadRecord(f"{one_line(name)} is {found}, wanted one of {known}")
            kind, shape = np.dtype(dtype).newbyteorder("<"), tuple(map(operator.index, shape))
            count = math.prod(shape)
            if min(shape, default=0) < 0 or count * kind.itemsize > len(data):
                raise BadRecord(f"damaged features: an array of shape {one_line(shape, 60)}")
            array = np.frombuffer(data, kind, count, at).reshape(shape)
            arrays[str(name)] = array.astype(dtype, copy=False)
            at += array.nbytes
        if at != len(data):
            raise BadRecord(f"the features should have {at} bytes, got {len(data)}")
        return FeatureRecord(id=str(header["id"]), arrays=arrays)
    except BadRecord:
        raise
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise BadRecord(f"damaged features: {one_line(error)}") from error


def layout(arrays: Mapping[str, np.ndarray]) -> Layout:
    """Returns dtype and shape of each array."""
    return {name: (array.dtype.name, array.shape) for name, array in arrays.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureTransform:
    """Makes one example of one record's features; draws only which conditions it drops.

    With the generator that `transforms.Transform` would get, it drops what that would drop.

    Attributes:
        layout: what every record must hold.
        styled: examples have `image` and `drop_style`.
        drop: chances to drop conditions.
    """

    layout: Layout
    styled: bool
    drop: Drop = Drop()

    def __call__(self, record: FeatureRecord, rng: np.random.Generator) -> dict[str, Any]:
        """Returns `mean`, `logvar`, `text`, `fps`, `drop_text`, and of a style its two.

        Raises:
            BadRecord: there are no features, not the arrays that all others have, or NaN in one.
        """
        drop_text, drop_style = drop_flags(self.drop, rng)
        if record.refused is not None:
            raise BadRecord(record.refused)
        found = layout(record.arrays)
        if found != self.layout:
            raise BadRecord(f"it holds {one_line(_spell(found))}, wanted {_spell(self.layout)}")
        for name, array in record.arrays.items():
            if not np.isfinite(array).all():
                raise BadRecord(f"its {name} has values that are not finite")
        example: dict[str, Any] = {name: record.arrays[name] for name in TRAINED_ON}
        example["drop_text"] = np.bool_(drop_text)
        if self.styled:
            example |= {"image": record.arrays["image"], "drop_style": np.bool_(drop_style)}
        return example


def is_features(path: str | Path) -> bool:
    """Returns whether a path is a folder of features."""
    return (Path(path) / FEATURES_FILE).is_file()


def read_notes(path: str | Path) -> dict[str, Any]:
    """Returns the settings and totals of a folder of features, `layout` as a `Layout`.

    Raises:
        DataError: they are damaged, or of a later version.
    """
    file = Path(path) / FEATURES_FILE
    try:
        notes = read_json(file)
        if notes["version"] != VERSION:
            found = one_line(notes["version"])
            raise DataError(f"{file}: version {found}, this package reads {VERSION}")
        held = {
            name: (str(dtype), tuple(map(operator.index, shape)))
            for name, (dtype, shape) in notes["layout"].items()
        }
        return {**notes, "layout": held}
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is damaged: {one_line(repr(error))}") from error


def _spell(layout: Layout) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in layout.items())
