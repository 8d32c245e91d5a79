"""Weights as a flat dict, name -> array: nest for Flax, select by pattern, count, cast.

A parameter has one name everywhere: `<part>/<Flax path joined by "/">`, where the modules carry
the PyTorch names. Parts are `unet`, `adapter`, `vae`, `text_encoder`, `image_encoder`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.typing import DTypeLike

Params = dict[str, Any]
PARTS = ("unet", "adapter", "vae", "text_encoder", "image_encoder")
STYLE_ATTENTION = r"^unet/.*attn2/(to_[kv]_style|norm_style)/"
ADAPTER = rf"^adapter/|{STYLE_ATTENTION}"
# Temporal transformers are the third module of a block, and the one of init_attn.
TEMPORAL = (
    r"^unet/((input_blocks|output_blocks)\.\d+\.2|middle_block\.2|init_attn\.0)"
    r"/(norm|proj_in|proj_out|transformer_blocks\.\d+)/"
)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Params:
    """Returns a nested dict of arrays as a flat one, names joined by "/"."""
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        flat |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *branches, leaf = path.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[leaf] = value
    return tree


def part(params: Mapping[str, Any], name: str) -> Params:
    """Returns the parameters of one part, their names without it."""
    prefix = name + "/"
    return {key[len(prefix) :]: value for key, value in params.items() if key.startswith(prefix)}


def select(params: Mapping[str, Any], pattern: str) -> Params:
    """Returns the parameters whose name contains a match of the regular expression."""
    return {name: value for name, value in params.items() if re.search(pattern, name)}


def count(params: Mapping[str, Any]) -> int:
    """Returns the number of values in all arrays."""
    return sum(math.prod(value.shape) for value in params.values())


def nbytes(params: Mapping[str, Any]) -> int:
    """Returns the size of all arrays in bytes."""
    return sum(math.prod(value.shape) * value.dtype.itemsize for value in params.values())


def cast(params: Mapping[str, Any], dtype: DTypeLike) -> Params:
    """Returns the parameters converted to `dtype`."""
    return {name: value.astype(dtype) for name, value in params.items()}


def mismatches(
    expected: Mapping[str, jax.ShapeDtypeStruct], got: Mapping[str, Any], *, limit: int = 8
) -> list[str]:
    """Returns one line for each kind of difference in names and shapes; empty when they agree."""
    lines = [
        _listed("missing", sorted(expected.keys() - got.keys()), limit),
        _listed("unused", sorted(got.keys() - expected.keys()), limit),
        _listed(
            "misshapen",
            [
                f"{name} is {tuple(got[name].shape)}, wanted {tuple(expected[name].shape)}"
                for name in expected
                if name in got and tuple(got[name].shape) != tuple(expected[name].shape)
            ],
            limit,
        ),
    ]
    return [line for line in lines if line]


def _listed(kind: str, items: Iterable[str], limit: int) -> str:
    items = list(items)
    if not items:
        return ""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return f"{len(items)} {kind}: {', '.join(items[:limit])}{more}"
