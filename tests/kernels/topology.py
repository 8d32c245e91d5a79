"""Programs compiled for TPUs that are not here."""

import importlib.util
from collections.abc import Callable, Sequence

import jax
import pytest

from stylecrafter_jax.plan.topology import devices, parse
from stylecrafter_jax.sharding import make_mesh, placed


def compiled_for(
    topology: str, function: Callable, kinds: Sequence[jax.ShapeDtypeStruct]
) -> jax.stages.Compiled:
    """Returns a program for one device of a topology, or skips the test where libtpu is absent."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (the extra tpu), which compiles for TPUs")
    mesh = make_mesh(devices(parse(topology))[:1])
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*placed(tuple(kinds), "whole", mesh)).compile()
