"""Programs compiled for TPUs that are not here."""

import importlib.util
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, SingleDeviceSharding


def compiled_for(
    topology: str, function: Callable, kinds: Sequence[jax.ShapeDtypeStruct]
) -> jax.stages.Compiled:
    """Returns a program for one device of a topology, or skips the test where libtpu is absent."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (the extra tpu), which compiles for TPUs")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    device = described.devices[0]
    placed = [
        jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=SingleDeviceSharding(device))
        for kind in kinds
    ]
    mesh = Mesh(np.array([device]), ("x",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*placed).compile()
