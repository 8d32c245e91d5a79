"""Meshes of devices, and where batches and weights lie on them."""

import math
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from stylecrafter_jax.kernels.sharded import BATCH_AXES

# Smaller arrays are held whole on every device: gathering them costs more than they weigh.
SMALLEST_SPLIT = 2**16
# How an argument lies on a mesh: its rows split, as weights, or whole on every device.
Layout = Literal["rows", "weights", "whole"]


def make_mesh(devices: np.ndarray, *, fsdp: int = 1) -> Mesh:
    """Returns the devices as groups of `fsdp` that hold one copy of the weights between them.

    Raises:
        ValueError: the devices are no whole number of such groups.
    """
    if devices.size % fsdp:
        raise ValueError(f"{devices.size} devices are no multiple of fsdp {fsdp}")
    return Mesh(devices.reshape(-1, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns where a batch lies: its rows, over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def weight_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Returns where an array of weights, or of what an optimizer keeps of them, lies.

    Its longest side that the group divides is split over the group; small arrays are not split.
    """
    group = mesh.shape["fsdp"]
    sides = [i for i, side in enumerate(shape) if side % group == 0]
    if group == 1 or not sides or math.prod(shape) < SMALLEST_SPLIT:
        return NamedSharding(mesh, PartitionSpec())
    longest = max(sides, key=lambda i: shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))


def placed(tree: Any, layout: Layout, mesh: Mesh) -> Any:
    """Returns abstract arrays that lie on a mesh, for a tree of arrays, abstract or not."""
    if mesh.size == 1:
        where = SingleDeviceSharding(mesh.devices.flat[0])
    else:
        where = batch_sharding(mesh) if layout == "rows" else NamedSharding(mesh, PartitionSpec())

    def place(x):
        own = weight_sharding(mesh, x.shape) if layout == "weights" else where
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own)

    return jax.tree.map(place, tree)
