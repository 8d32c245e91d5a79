"""PyTorch state dicts: name, layout and place of the entry that holds one of our parameters."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# A module's children in the order of its constructor: one list serves all modules, since no two
# order the same names differently. Numbers sort as numbers.
ORDER = """
    model first_stage_model cond_stage_model
    image_context_model scale_predictor kv_attn_layers
    time_embed fps_embedding input_blocks init_attn middle_block output_blocks
    in_layers emb_layers out_layers skip_connection temopral_conv
    encoder decoder quant_conv post_quant_conv
    conv_in down mid up norm_out conv_out block_1 attn_1 block_2
    class_embedding positional_embedding text_projection logit_scale visual
    style_emb scale_emb norm q k v proj_in proj transformer_blocks proj_out attn1 ff attn2
    norm1 conv1 norm2 conv2 norm3 conv3 conv4 nin_shortcut
    ln_pre transformer ln_post token_embedding ln_final
    block ln_1 attn ln_2 mlp downsample upsample ln1 ln2 out
    to_q to_k to_v to_out relative_position_k relative_position_v
    to_k_style to_v_style norm_style
    in_proj_weight in_proj_bias out_proj c_fc c_proj weight bias
""".split()
RANKS = {name: rank for rank, name in enumerate(ORDER)}
# Style processors carry a module's path with underscores for its dots.
SEPARATOR = re.compile(r"\.|(?:(?<=blocks)|(?<=middle_block))_(?=\d)|(?<=\d)_")


class Entry(NamedTuple):
    """Where one of our parameters lies in a PyTorch state dict.

    Attributes:
        name: the entry.
        kernel: PyTorch's first two axes, output and input, are our last two, exchanged.
        third: 0, 1 or 2: the parameter is this third of the entry's rows; None: all of it.
    """

    name: str
    kernel: bool = False
    third: int | None = None


def dotted(name: str) -> str:
    """Returns our parameter name as PyTorch writes it, inside the same part."""
    stem, leaf = name.replace("/", ".").rsplit(".", 1)
    return f"{stem}.{LEAVES.get(leaf, leaf)}"


def read(entry: Entry, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns our parameter as a view of its entry."""
    array = tensors[entry.name]
    if entry.third is not None:
        rows = array.shape[0] // 3
        array = array[entry.third * rows : (entry.third + 1) * rows]
    return np.moveaxis(array, (0, 1), (-1, -2)) if entry.kernel else array


def state_dict(
    table: Mapping[str, Entry], params: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the entries that hold `params`, by name and in PyTorch's order; undoes `read`.

    Args:
        table: our name -> its entry, for the parameters to write.
        params: arrays by our name.
    """
    owners: dict[str, list[str]] = {}
    for name, entry in table.items():
        owners.setdefault(entry.name, []).append(name)
    for entry_name in sorted(owners, key=order):
        names = sorted(owners[entry_name], key=lambda name: table[name].third or 0)
        rows = [_to_torch(params[name], table[name].kernel) for name in names]
        yield entry_name, rows[0] if len(rows) == 1 else np.concatenate(rows)


def shape(entry: Entry, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the entry that holds a parameter of shape `ours`."""
    if entry.kernel:
        ours = (ours[-1], ours[-2], *ours[:-2])
    return ours if entry.third is None else (3 * ours[0], *ours[1:])


def order(name: str) -> list[tuple[int, int]]:
    """Returns the sort key of an entry in PyTorch's order."""
    return [
        (-1, int(piece)) if piece.isdigit() else (RANKS.get(piece, len(RANKS)), 0)
        for piece in SEPARATOR.split(name)
    ]


def _to_torch(array: np.ndarray, kernel: bool) -> np.ndarray:
    array = np.moveaxis(array, (-1, -2), (0, 1)) if kernel else array
    return np.array(array, order="C")
