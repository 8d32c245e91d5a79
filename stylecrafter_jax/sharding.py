"""Meshes of devices, and where batches and weights lie on them."""

import contextlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)

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


def run_mesh(
    data: int | None, fsdp: int, *, rows: int, devices: Sequence[Any] | None = None
) -> Mesh:
    """Returns `data` groups of `fsdp` devices, the first ones there are.

    Args:
        data: groups; None takes as many as there are devices for and the rows can be split over.
        fsdp: devices that hold one copy of the weights between them.
        rows: that every device is to have the same number of.
        devices: all that there are.

    Raises:
        ValueError: there are fewer, or the rows cannot be split over them.
    """
    devices = jax.devices() if devices is None else devices
    if data is None:
        fitting = (n for n in range(len(devices) // fsdp, 0, -1) if rows % (n * fsdp) == 0)
        data = next(fitting, 1)
    count = data * fsdp
    if count > len(devices):
        raise ValueError(f"data={data} fsdp={fsdp} takes {count} devices, got {len(devices)}")
    if rows % count:
        raise ValueError(f"data={data} fsdp={fsdp}: {rows} rows cannot be split over {count}")
    return make_mesh(np.array(devices[:count]), fsdp=fsdp)


def on_mesh(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Returns a context in which programs are made for a mesh; without one it changes nothing."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns where a batch lies: its rows, over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def own_blocks(mesh: Mesh) -> tuple[list[int], int]:
    """Returns which of the equal blocks of a batch's rows are this process's, and of how many.

    Processes whose devices share rows have the same blocks.
    """
    count = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    held = batch_sharding(mesh).addressable_devices_indices_map((count,))
    return sorted({rows[0].start or 0 for rows in held.values() if rows is not None}), count


def weight_spec(mesh: Mesh | AbstractMesh, shape: tuple[int, ...]) -> PartitionSpec:
    """Returns how an array of weights, or of what an optimizer keeps of them, is split.

    Its longest side that the group divides is split over the group; small arrays are not split.
    """
    group = mesh.shape["fsdp"]
    sides = [i for i, side in enumerate(shape) if side % group == 0]
    if group == 1 or not sides or math.prod(shape) < SMALLEST_SPLIT:
        return PartitionSpec()
    longest = max(sides, key=lambda i: shape[i])
    return PartitionSpec(*[None] * longest, "fsdp")


def put_weights(tree: Any, mesh: Mesh | None) -> Any:
    """Returns a tree of weights, or of an optimizer's state, on a mesh; as it is without one."""
    if mesh is None:
        return tree

    def put(x):
        sharding = NamedSharding(mesh, weight_spec(mesh, x.shape))
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)  # every process has it whole, and gives its devices their parts
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(put, tree)


def stay_split(tree: Any) -> Any:
    """Has a tree of weights leave a program as `put_weights` put it, on the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, weight_spec(mesh, x.shape)), tree
    )


def on_one_device(tree: Any) -> Any:
    """Returns a tree of arrays whole on one device, copied only where they are not there.

    Where other processes hold parts of them, all processes must call it.
    """
    far = [
        x for x in jax.tree.leaves(tree) if not (x.is_fully_replicated or x.is_fully_addressable)
    ]
    if far:
        everywhere = NamedSharding(far[0].sharding.mesh, PartitionSpec())
        tree = jax.jit(lambda x: x, out_shardings=everywhere)(tree)

    def take(x: jax.Array) -> jax.Array:
        if x.is_fully_replicated:
            return x.addressable_data(0)
        return jax.device_put(x, SingleDeviceSharding(jax.local_devices()[0]))

    return jax.tree.map(take, tree)


def placed(tree: Any, layout: Layout, mesh: Mesh) -> Any:
    """Returns abstract arrays that lie on a mesh, for a tree of arrays, abstract or not."""
    if mesh.size == 1:
        where = SingleDeviceSharding(mesh.devices.flat[0])
    else:
        where = batch_sharding(mesh) if layout == "rows" else NamedSharding(mesh, PartitionSpec())

    def place(x):
        own = NamedSharding(mesh, weight_spec(mesh, x.shape)) if layout == "weights" else where
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own)

    return jax.tree.map(place, tree)
