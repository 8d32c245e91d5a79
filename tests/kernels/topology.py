"""Programs compiled for TPUs that are not here."""

import importlib.util
from collections.abc import Callable, Sequence

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, SingleDeviceSharding

from stylecrafter_jax.plan.topology import devices, parse


def compiled_for(
    topology: str, function: Callable, kinds: Sequence[jax.ShapeDtypeStruct]
) -> jax.stages.Compiled:
    """Returns a program for one device of a topology, or skips the test where libtpu is absent."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (the extra tpu), which compiles for TPUs")
    device = devices(parse(topology))[0]
    placed = [
        jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=SingleDeviceSharding(device))
        for kind in kinds
    ]
    mesh = Mesh(np.array([device]), ("x",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*placed).compile()
