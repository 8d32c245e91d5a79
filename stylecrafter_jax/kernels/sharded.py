"""Kernels over a mesh: every device works on its own rows, since rows do not meet in attention."""

import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

# The mesh axes that a batch is split over, outermost first.
BATCH_AXES = ("data", "fsdp")


def _axes() -> tuple[str, ...]:
    """Returns the axes over which rows are still to be split."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(a for a in BATCH_AXES if a in mesh.shape and a not in mesh.manual_axes)


def devices_of_rows() -> int:
    """Returns over how many devices of the mesh in use the rows of a batch are split."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in _axes())


def uneven(rows: int) -> str | None:
    """Returns what about so many rows keeps them from being split evenly; None if nothing does."""
    devices = devices_of_rows()
    return f"{rows} rows on {devices} devices" if rows % devices else None


def over_rows(
    function: Callable[..., Array], by_row: Sequence[Array], shared: Sequence[Array] = ()
) -> Array:
    """Returns `function(*by_row, *shared)`, computed on each device for its own rows.

    A kernel is opaque to XLA, which could only gather all rows on every device.

    Args:
        function: computes rows of its result from the same rows of `by_row`.
        by_row: arrays whose rows (axis 0) are split; their number is even, see `uneven`.
        shared: arrays that every device has whole.
    """
    if devices_of_rows() == 1:
        return function(*by_row, *shared)
    mesh = jax.sharding.get_abstract_mesh()
    rows = PartitionSpec(_axes())
    specs = (*[rows] * len(by_row), *[PartitionSpec()] * len(shared))
    # Pallas does not say over which axes its results vary, so this cannot be checked.
    split = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return split(*by_row, *shared)
