"""Chips that need not be here: `v5e:4x4`, `h200:8`."""

import importlib.util
import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from stylecrafter_jax.foreign import reason
from stylecrafter_jax.plan.chips import CHIPS, Chip
from stylecrafter_jax.sharding import AXES, make_mesh

NO_LIBTPU = (
    "planning for TPU compiles with libtpu, which is not installed: "
    "pip install 'stylecrafter_jax[tpu]', or plan with --no-compile"
)
LIBTPU_NAMES = {"v7x": "tpu7x"}  # where libtpu's name is another


class TopologyError(ValueError):
    """A topology cannot be planned for; the message is one line that says why."""


class Topology(NamedTuple):
    """So many chips of one kind.

    Attributes:
        name: as the user wrote it.
        chip: which.
        count: how many.
    """

    name: str
    chip: Chip
    count: int


def parse(name: str) -> Topology:
    """Returns what `v5e:4x4` (chips along each side) or `h200:8` (chips) means.

    Raises:
        TopologyError: the chip is unknown or the size is none of its sizes.
    """
    kind, _, size = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None:
        raise TopologyError(f"unknown chip {kind!r} in {name!r}, wanted one of {', '.join(CHIPS)}")
    size = size or "x".join("1" * (len(chip.sizes[0].split("x")) if chip.sizes else 1))
    sides = size.split("x")
    if not all(side.isdigit() and int(side) for side in sides):
        raise TopologyError(f"{name!r} has no size: wanted for example {_example(chip)}")
    dimensions = {len(known.split("x")) for known in chip.sizes} or {1}
    if len(sides) not in dimensions:
        raise TopologyError(f"{kind} slices look like {_example(chip)}, got {name!r}")
    return Topology(f"{kind}:{size}", chip, math.prod(int(side) for side in sides))


def mesh_axes(topology: Topology, given: Mapping[str, int]) -> dict[str, int]:
    """Returns the sizes of a mesh of all chips; `data` takes those that the others leave.

    Chips of a slice cannot be left out: libtpu compiles for one of them or for all.

    Raises:
        TopologyError: the chips are no such mesh.
    """
    axes = {axis: given.get(axis, 1) for axis in AXES}
    chips = math.prod(axes.values())
    if "data" not in given and topology.count % chips == 0:
        return {**axes, "data": topology.count // chips}
    if chips != topology.count:
        named = ",".join(f"{axis}={size}" for axis, size in given.items())
        raise TopologyError(f"the mesh {named} does not make {topology.count} chips")
    return axes


def mesh_of(topology: Topology, axes: Mapping[str, int] | None) -> Mesh:
    """Returns chips of a TPU topology as a mesh of such sizes; one chip without them.

    Raises:
        TopologyError: see `devices`.
    """
    sizes = {} if axes is None else dict(axes)
    data = sizes.pop("data", 1)
    return make_mesh(devices(topology)[: data * math.prod(sizes.values())], **sizes)


def _example(chip: Chip) -> str:
    return f"{chip.name}:{chip.sizes[3] if chip.sizes else 8}"


def devices(topology: Topology) -> np.ndarray:
    """Returns the chips of a TPU topology, to compile for; none need be here.

    Raises:
        TopologyError: libtpu is missing, or does not know this chip or size.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(NO_LIBTPU)
    # No machine's metadata are asked for; and compiling alone, processes need not wait for another.
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(name, "1")
    kind, _, size = topology.name.partition(":")
    # Of some chips libtpu describes whole hosts only; one chip of a host is compiled for alone.
    whole = {2: "2x2", 3: "2x2x1"}[len(size.split("x"))] if topology.count == 1 else size
    asked = f"{LIBTPU_NAMES.get(kind, kind)}:{whole}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=asked)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError, NotImplementedError) as error:
        raise TopologyError(
            f"this libtpu does not know {topology.name}: {reason(error)}"
        ) from error
    return np.array(found.devices[: topology.count])
