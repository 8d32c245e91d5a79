"""Work over a mesh: kernels on each device's own rows, and frames or positions split over devices.

A mesh has the axes `data` and `fsdp`, which split the rows of a batch, `frames`, which splits a
video, and `tensor`, which splits heads and channels. Layers within a frame have their frames split;
layers over the frames have their positions split, and the data change places in between.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from einops import rearrange
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

# The mesh axes that a batch is split over, outermost first.
BATCH_AXES = ("data", "fsdp")
FRAMES, TENSOR = "frames", "tensor"
ROW_AXES = (*BATCH_AXES, FRAMES)  # over which the frames of all videos are split
_ANY = PartitionSpec.UNCONSTRAINED


def _size(*axes: str) -> int:
    """Returns over how many devices these axes of the mesh in use still split something."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in _open(axes))


def _open(axes: Sequence[str]) -> tuple[str, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(a for a in axes if a in mesh.shape and a not in mesh.manual_axes)


def devices_in_use() -> int:
    """Returns over how many devices of the mesh in use work is split, or may be."""
    return _size(*ROW_AXES, TENSOR)


def devices_of_rows() -> int:
    """Returns over how many devices the frames of all videos of a batch are split."""
    return _size(*ROW_AXES)


def devices_of_videos() -> int:
    """Returns over how many devices the rows of a batch of videos are split."""
    return _size(*BATCH_AXES)


def split_videos() -> int:
    """Returns over how many devices the frames of a video are split."""
    return _size(FRAMES)


def heads_of_a_device(heads: int) -> int:
    """Returns how many of so many heads a device works on: its part if their number is even."""
    return heads if heads % _size(TENSOR) else heads // _size(TENSOR)


def split_heads(heads: int | None = None) -> str | None:
    """Returns what keeps a kernel from working on its heads; None if nothing does.

    Args:
        heads: of a kernel that can do with some of them; None wants all.
    """
    if _size(TENSOR) == 1:
        return None
    if heads is None:
        return "heads on several devices"
    return f"{heads} heads on {_size(TENSOR)} devices" if heads % _size(TENSOR) else None


def uneven(rows: int, queries: int | None = None) -> str | None:
    """Returns what keeps rows from being split evenly; None if nothing does.

    Args:
        rows: of a batch; of its frames too, unless these are among the queries.
        queries: of each row, where these are those of all frames, one frame after the other.
    """
    axes = ROW_AXES if queries is None else BATCH_AXES
    if rows % _size(*axes):
        return f"{rows} rows on {_size(*axes)} devices"
    if queries is not None and queries % _size(FRAMES):
        return f"{queries} queries on {_size(FRAMES)} devices"
    return None


def over_rows(
    function: Callable[..., Array],
    by_row: Sequence[Array],
    shared: Sequence[Any] = (),
    *,
    queries: bool = False,
    heads: int | None = None,
) -> Array:
    """Returns `function(*by_row, *shared)`, computed on each device for its own rows.

    A kernel is opaque to XLA, which could only gather all rows on every device.

    Args:
        function: computes rows of its result from the same rows of `by_row`.
        by_row: arrays whose rows (axis 0) are split; their number is even, see `uneven`.
        shared: arrays, or trees of them, that every device has whole.
        queries: the first array holds the queries of all frames of a row along axis 1, and so does
            the result: frames are split there, not along the rows.
        heads: of the arrays by row, along axis 2, alone or merged with their channels; they are
            split if their number is even.
    """
    if devices_in_use() == 1:
        return function(*by_row, *shared)
    mesh = jax.sharding.get_abstract_mesh()
    rows = _open(BATCH_AXES if queries else ROW_AXES)
    if not rows:  # each device is at its own rows already
        return function(*by_row, *shared)
    by_head = (TENSOR,) if heads is not None and heads_of_a_device(heads) < heads else ()
    first = PartitionSpec(rows, FRAMES if queries and _open((FRAMES,)) else None, *by_head)
    others = PartitionSpec(rows, None, *by_head) if by_head else PartitionSpec(rows)
    specs = (first, *[others] * (len(by_row) - 1), *[PartitionSpec()] * len(shared))
    # Pallas does not say over which axes its results vary, so this cannot be checked.
    split = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=first, check_vma=False)
    return split(*by_row, *shared)


def are_own_pictures(rows: int, frames: int) -> bool:
    """Returns whether videos of so many frames are pictures, each of which one device has."""
    return frames == 1 and rows % _size(*ROW_AXES) == 0


def split_frames(x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
    """Has the devices hold their own videos and, of these, their own frames.

    Pictures, which have one frame, are split over all of these devices, if their number is even.
    """
    if devices_in_use() == 1:
        return x
    if are_own_pictures(*x.shape[:2]):
        return split_pictures(x)
    rows = _open(BATCH_AXES) if x.shape[0] % _size(*BATCH_AXES) == 0 else _ANY
    frames = FRAMES if _open((FRAMES,)) and x.shape[1] % _size(FRAMES) == 0 else _ANY
    spec = PartitionSpec(rows, frames, *[_ANY] * (x.ndim - 2))
    return jax.lax.with_sharding_constraint(x, spec)


def split_pictures(batch: Any) -> Any:
    """Has the devices that share a video each hold its own rows of a batch of pictures.

    Args:
        batch: a tree of arrays by row; those whose number of rows is not even stay as they are.
    """
    if devices_in_use() == 1:
        return batch

    def split(x: Array) -> Array:
        if x.shape[0] % _size(*ROW_AXES):
            return x
        spec = PartitionSpec(_open(ROW_AXES), *[_ANY] * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, spec)

    return jax.tree.map(split, batch)


def own_channels(x: Shaped[Array, "*batch c"]) -> Shaped[Array, "*batch c"]:
    """Has the devices of `tensor` hold their own of the last axis, if its size is even."""
    if heads_of_a_device(x.shape[-1]) == x.shape[-1]:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[_ANY] * (x.ndim - 1), TENSOR))


def over_frames(
    function: Callable[..., Any], x: Any, *shared: Any, heads: int | None = None
) -> Any:
    """Returns `function(x, *shared)`, computed by each device for its own frames.

    Rows and frames that are both split make no axis that XLA could split, so whatever merges them
    is done on each device alone.

    Args:
        function: of videos, no frame of which it mixes with another.
        x: an array of videos ("b f ..."), or a tree of such arrays; so is what it returns.
        *shared: arrays, or trees of them, that every device has whole, but for what `tensor`
            splits.
        heads: merged in the last axis of the videos and of the result; if their number is even, the
            devices of `tensor` each have their own, and otherwise all of them. Nothing is then left
            to XLA, as Mosaic wants it, not even an axis of one device. None leaves it `tensor`.
    """
    b, f = jax.tree.leaves(x)[0].shape[:2]
    if _size(FRAMES) == 1 or b % _size(*BATCH_AXES) or f % _size(FRAMES):
        return function(x, *shared)
    own, axes = PartitionSpec(_open(BATCH_AXES), FRAMES), _open(ROW_AXES)
    if heads is not None:
        axes = _open((*ROW_AXES, TENSOR))
        if heads_of_a_device(heads) < heads:
            own = PartitionSpec(_open(BATCH_AXES), FRAMES, None, TENSOR)
    mesh = jax.sharding.get_abstract_mesh()
    split = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(own, *[PartitionSpec()] * len(shared)),
        out_specs=own,
        axis_names=set(axes),
        check_vma=False,
    )
    return split(x, *shared)


def over_positions(
    function: Callable[[Array], Array], x: Float[Array, "b f h w c"]
) -> Float[Array, "b f h w d"]:
    """Returns `function(x)`, computed by each device for all frames of its own positions.

    Args:
        function: of videos; it may change the channels, and mixes frames but no positions, unless
            in the statistics of a norm.
        x: videos whose frames are split, as they are in the result.
    """
    count, (height, width) = _size(FRAMES), x.shape[2:4]
    if count == 1 or height * width % count or x.shape[1] % count:
        return function(x)

    def turned(y: Array) -> Array:
        spec = PartitionSpec(_ANY, None, FRAMES, None, _ANY)
        return jax.lax.with_sharding_constraint(y, spec)

    merged = split_frames(rearrange(x, "b f h w c -> b f (h w) 1 c"))
    out = split_frames(turned(function(turned(merged))))
    return rearrange(out, "b f (h w) 1 c -> b f h w c", h=height, w=width)
