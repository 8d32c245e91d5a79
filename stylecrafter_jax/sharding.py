"""Meshes of devices, and where batches and weights lie on them.

The axes of a mesh, outermost first: `data` and `fsdp` split the rows of a batch; `fsdp` splits
weights as well, which are gathered where they are used; `frames` splits each video; `tensor` splits
heads and channels. Devices of the inner axes talk most, so they lie next to each other.
"""

import collections
import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)

from stylecrafter_jax.kernels.sharded import BATCH_AXES, FRAMES, TENSOR

AXES = (*BATCH_AXES, FRAMES, TENSOR)
# Smaller arrays are held whole on every device: gathering them costs more than they weigh.
SMALLEST_SPLIT = 2**16
# How a tree of arrays lies on a mesh: rows split; rows and frames split, where their numbers are
# even; as weights; as weights that `fsdp` leaves whole; or whole on every device.
Layout = Literal["rows", "videos", "weights", "replicated", "whole"]
WeightLayout = Literal["weights", "replicated"]

# Parameter name -> how its last axes are split; the first match wins. What enters an attention or a
# feed-forward has its outputs split over `tensor`, what leaves it its inputs, so that the channels
# between blocks are whole on every device. A gated feed-forward's first kernel has two halves side
# by side, and a device needs its part of both, which no split of their row is: it is whole there.
_IN, _OUT = ("fsdp", TENSOR), (TENSOR, "fsdp")
RULES = (
    (r"/to_[qkv](_style)?/kernel$", _IN),
    (r"/to_out\.0/kernel$", _OUT),
    (r"/ff/net\.2/kernel$", _OUT),
    (r"/self_attn/[qkv]_proj/kernel$", _IN),
    (r"/self_attn/out_proj/kernel$", _OUT),
    (r"/mlp/fc1/kernel$|/mlp\.c_fc/kernel$", _IN),
    (r"/mlp/fc2/kernel$|/mlp\.c_proj/kernel$", _OUT),
    (r"/in_layers\.2/kernel$|/emb_layers\.1/kernel$", _IN),
    (r"/out_layers\.3/kernel$", _OUT),
    (r"/in_proj_weight$|embedding$", ("fsdp", None)),
    (r"/kernel$|/proj$", ("fsdp", None)),
    (r"", ()),
)


def make_mesh(devices: np.ndarray, *, fsdp: int = 1, frames: int = 1, tensor: int = 1) -> Mesh:
    """Returns the devices as a mesh, the rest of them along `data`.

    TPUs are put where the inner axes are neighbours; of several slices each has its part of `data`,
    the only axis whose messages go between slices.

    Raises:
        ValueError: the devices are no whole number of such groups, or the slices none of `data`.
    """
    group = fsdp * frames * tensor
    if devices.size % group:
        wanted = " ".join(
            f"{name} {n}" for name, n in zip(AXES[1:], (fsdp, frames, tensor), strict=True) if n > 1
        )
        raise ValueError(f"{devices.size} devices are no multiple of {wanted}")
    shape = (devices.size // group, fsdp, frames, tensor)
    flat = sorted(devices.flat, key=lambda d: (_slice(d), d.process_index, d.id))
    slices = len({_slice(device) for device in flat})
    if shape[0] % slices:
        raise ValueError(f"data {shape[0]} cannot be split over {slices} slices")
    if slices > 1:
        inner = (shape[0] // slices, *shape[1:])
        placed = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1, 1), flat)
    elif flat[0].platform == "tpu" and math.prod(shape[1:]) > 1:
        placed = mesh_utils.create_device_mesh(shape, flat, allow_split_physical_axes=True)
    else:
        placed = np.array(flat).reshape(shape)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slice(device: Any) -> int:
    """Returns the slice of a TPU; other devices are in one."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def run_mesh(
    data: int | None,
    fsdp: int = 1,
    frames: int = 1,
    tensor: int = 1,
    *,
    rows: int,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Returns `data` groups of devices, the first ones there are.

    Args:
        data: groups; None takes as many as there are devices for and the rows can be split over.
        fsdp: parts of the weights of a group.
        frames: parts of a video.
        tensor: parts of the heads and channels.
        rows: of which every `data` and `fsdp` part is to have the same number.
        devices: all that there are.

    Raises:
        ValueError: there are fewer, or the rows cannot be split over them.
    """
    devices = jax.devices() if devices is None else devices
    inner = frames * tensor
    if data is None:
        most = len(devices) // (fsdp * inner)
        fitting = [n for n in range(most, 0, -1) if rows % (n * fsdp) == 0] or [1]
        even = [n for n in fitting if _is_even(devices[: n * fsdp * inner])]
        data = next(iter(even or fitting))
    count = data * fsdp * inner
    sizes = zip(AXES, (data, fsdp, frames, tensor), strict=True)
    axes = " ".join(f"{name}={n}" for name, n in sizes if n > 1 or name in BATCH_AXES)
    if count > len(devices):
        raise ValueError(f"{axes} takes {count} devices, got {len(devices)}")
    if rows % (data * fsdp):
        raise ValueError(f"{axes}: {rows} rows cannot be split over {data * fsdp}")
    return make_mesh(np.array(devices[:count]), fsdp=fsdp, frames=frames, tensor=tensor)


def check_processes(mesh: Mesh, called: str) -> None:
    """Refuses a mesh of which not every process has the same number of devices.

    Args:
        mesh: the mesh.
        called: what the user knows it by.

    Raises:
        ValueError: it is such a mesh.
    """
    if not _is_even(mesh.devices.flat):
        held = len({device.process_index for device in mesh.devices.flat})
        raise ValueError(
            f"{called} has devices of {held} of {jax.process_count()} processes; all must take "
            "part, with the same number of devices"
        )


def _is_even(devices: Iterable[Any]) -> bool:
    """Returns whether every process has the same number of these devices."""
    counts = collections.Counter(device.process_index for device in devices)
    return len(counts) == jax.process_count() and len(set(counts.values())) == 1


def parse_mesh(text: str) -> dict[str, int]:
    """Returns the sizes of a mesh such as `data=2,frames=4`.

    Raises:
        ValueError: it is something else.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES or not size.isdecimal() or int(size) < 1 or name in sizes:
            raise ValueError(
                f"a mesh is such as data=2,frames=4, of {', '.join(AXES)}; got {text!r}"
            )
        sizes[name] = int(size)
    return sizes


def on_mesh(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Returns a context in which programs are made for a mesh; without one it changes nothing."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns where a batch lies: its rows, over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def parts_of_rows(mesh: Mesh | None) -> int:
    """Returns into how many parts the rows of a batch are split."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def own_blocks(mesh: Mesh) -> tuple[list[int], int]:
    """Returns which of the equal blocks of a batch's rows are this process's, and of how many.

    Processes whose devices share rows have the same blocks.
    """
    count = parts_of_rows(mesh)
    held = batch_sharding(mesh).addressable_devices_indices_map((count,))
    return sorted({rows[0].start or 0 for rows in held.values() if rows is not None}), count


def weight_spec(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Returns how a parameter, or what an optimizer keeps of it, is split: by `RULES`.

    An axis of the mesh that does not divide its side is left out; `fsdp` then takes the longest
    side that it divides. Small arrays are not split.
    """
    wanted: tuple[str | None, ...] = next(
        rule for pattern, rule in RULES if re.search(pattern, name)
    )
    if math.prod(shape) < SMALLEST_SPLIT or not wanted:
        return PartitionSpec()
    sides: list[str | None] = [None] * len(shape)
    for place, axis in zip(range(-len(wanted), 0), wanted, strict=True):
        if axis and len(shape) >= -place and mesh.shape[axis] > 1:
            sides[place] = axis if shape[place] % mesh.shape[axis] == 0 else None
    free = [i for i, axis in enumerate(sides) if not axis and shape[i] % mesh.shape["fsdp"] == 0]
    if mesh.shape["fsdp"] > 1 and "fsdp" not in sides and free:
        sides[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*sides) if any(sides) else PartitionSpec()


def weight_specs(mesh: Mesh | AbstractMesh, tree: Any, layout: WeightLayout = "weights") -> Any:
    """Returns how every array of a tree is split: by the name of the parameter that it is, or of.

    Flat parameters have their names as keys; so have the optimizer's moments, inside its state.
    """
    if layout == "replicated":
        mesh = sizes_of({**mesh.shape, "fsdp": 1})

    def spec(path: tuple[Any, ...], x: Any) -> PartitionSpec:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return weight_spec(mesh, str(names[-1]) if names else "", x.shape)

    return jax.tree_util.tree_map_with_path(spec, tree)


def _dividing(
    mesh: Mesh | AbstractMesh, axes: tuple[str, ...], size: int
) -> str | tuple[str, ...] | None:
    """Returns the axes that split a side of an array evenly, written as XLA writes them."""
    splitting = [axis for axis in axes if mesh.shape[axis] > 1]
    if not splitting or size % math.prod(mesh.shape[axis] for axis in splitting):
        return None
    return tuple(splitting) if len(splitting) > 1 else splitting[0]


def put_weights(tree: Any, mesh: Mesh | None, layout: WeightLayout = "weights") -> Any:
    """Returns a tree of weights, or of an optimizer's state, on a mesh; None is one device.

    Either way it is bound there, as what a checkpoint gives back: both take the same program.
    Weights that are replicated cost memory and need not be gathered where they are used.
    """
    if mesh is None:
        return jax.device_put(tree, jax.local_devices()[0])

    def put(x: Any, spec: PartitionSpec) -> jax.Array:
        sharding = NamedSharding(mesh, spec)
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)  # every process has it whole, and gives its devices their parts
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(put, tree, weight_specs(mesh, tree, layout))


def stay(tree: Any, layout: Layout) -> Any:
    """Has a tree of arrays lie so on the mesh in use; weights as `put_weights` puts them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs(mesh, tree, layout))


def specs(mesh: Mesh | AbstractMesh, tree: Any, layout: Layout) -> Any:
    """Returns how every array of a tree is split."""
    if layout in ("weights", "replicated"):
        return weight_specs(mesh, tree, layout)

    def spec(x: Any) -> PartitionSpec:
        if layout == "whole":
            return PartitionSpec()
        if layout == "rows":
            return PartitionSpec(BATCH_AXES)
        sides = zip((BATCH_AXES, (FRAMES,)), x.shape[:2], strict=True)
        return PartitionSpec(*(_dividing(mesh, axes, size) for axes, size in sides))

    return jax.tree.map(spec, tree)


@functools.cache
def _everywhere(mesh: Mesh) -> Callable[[Any], Any]:
    """Returns the program that makes a tree of arrays whole on every device, kept for a mesh."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def on_one_device(tree: Any) -> Any:
    """Returns a tree of arrays whole on one device, copied only where they are not there.

    Where other processes hold parts of them, all processes must call it.
    """

    def is_far(x: jax.Array) -> bool:
        return not (x.is_fully_replicated or x.is_fully_addressable)

    far = [x for x in jax.tree.leaves(tree) if is_far(x)]
    if far:
        tree = _everywhere(far[0].sharding.mesh)(tree)

    def take(x: jax.Array) -> jax.Array:
        if x.is_fully_replicated:
            return x.addressable_data(0)
        return jax.device_put(x, SingleDeviceSharding(jax.local_devices()[0]))

    return jax.tree.map(take, tree)


def placed(tree: Any, layout: Layout, mesh: Mesh | None) -> Any:
    """Returns abstract arrays that lie on a mesh, for a tree of arrays, abstract or not.

    None is one device, as of `put_weights`.
    """
    mesh = make_mesh(np.array(jax.local_devices()[:1])) if mesh is None else mesh

    def place(x: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        one = SingleDeviceSharding(mesh.devices.flat[0])
        own = one if mesh.size == 1 else NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own)

    return jax.tree.map(place, tree, specs(mesh, tree, layout))


def sizes_of(mesh: Mapping[str, int]) -> AbstractMesh:
    """Returns a mesh of such sizes on devices that need not be here; axes may be left out."""
    sizes = tuple(mesh.get(axis, 1) for axis in AXES)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def bytes_on_a_device(
    tree: Any, mesh: Mesh | AbstractMesh, layout: WeightLayout = "weights"
) -> int:
    """Returns what one device holds of a tree of weights, abstract or not."""

    def held(x: Any, spec: PartitionSpec) -> int:
        parts = math.prod(mesh.shape[axis] for axis in spec if axis is not None)
        return x.size * x.dtype.itemsize // parts

    return sum(jax.tree.leaves(jax.tree.map(held, tree, weight_specs(mesh, tree, layout))))


def axes_of(mesh: Mesh) -> Mapping[str, int]:
    """Returns the axes of a mesh that split something, with their sizes."""
    return {name: size for name, size in mesh.shape.items() if size > 1}
