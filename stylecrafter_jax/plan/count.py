"""What a traced program computes, counted from its jaxpr: before and without compiling it.

The compiler's own count takes the body of a loop once, however often it runs, and knows of a Pallas
kernel what that says of itself. Here loops count as often as they run, where that is known.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


class Count(NamedTuple):
    """Work of matrix products and convolutions, forward or backward.

    Attributes:
        flops: operations, two for each multiplication.
        bytes: operands and results: what moves if everything else is fused into them.
    """

    flops: float = 0.0
    bytes: float = 0.0

    def times(self, n: float) -> "Count":
        return Count(self.flops * n, self.bytes * n)

    def plus(self, other: "Count") -> "Count":
        return Count(self.flops + other.flops, self.bytes + other.bytes)


def count(jaxpr: core.Jaxpr, *, loops: bool = True) -> Count:
    """Returns the work of a program over all devices.

    Args:
        jaxpr: of the program.
        loops: count a loop as often as it runs; else once, as compilers do. A loop whose length is
            an argument counts once either way.
    """
    return _sum(_cost(eqn, loops) for eqn in jaxpr.eqns)


def by_scope(jaxpr: core.Jaxpr, label: Callable[[str], str]) -> dict[str, Count]:
    """Returns the work by what `label` makes of the names of the modules it is done in."""
    found: dict[str, Count] = {}
    for path, work in _walk(jaxpr, "", 1.0):
        name = label(path)
        found[name] = found.get(name, Count()).plus(work)
    return found


def _walk(jaxpr: core.Jaxpr, outer: str, times: float) -> Iterator[tuple[str, Count]]:
    for eqn in jaxpr.eqns:
        path = f"{outer}/{eqn.source_info.name_stack}"
        inner = list(_inner(eqn))
        if inner and eqn.primitive.name not in ("pallas_call", "cond"):
            for sub, n in inner:
                yield from _walk(sub, path, times * n)
        else:
            yield path, _cost(eqn, True).times(times)


def _sum(counts: Iterator[Count]) -> Count:
    total = Count()
    for each in counts:
        total = total.plus(each)
    return total


def _cost(eqn: Any, loops: bool) -> Count:
    name = eqn.primitive.name
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        width = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        return Count(2.0 * math.prod(eqn.outvars[0].aval.shape) * width, _moved(eqn))
    if name == "conv_general_dilated":
        return Count(_convolution(eqn), _moved(eqn))
    if name == "pallas_call" and eqn.params.get("cost_estimate") is not None:
        estimate = eqn.params["cost_estimate"]
        return Count(float(estimate.flops), float(estimate.bytes_accessed))
    once = name == "scan" and not loops  # what devices or a kernel's grid repeat is no loop
    inner = [count(sub, loops=loops).times(1.0 if once else n) for sub, n in _inner(eqn)]
    if name == "pallas_call":
        return Count(_sum(iter(inner)).flops, _moved(eqn))
    if name == "cond":
        return max(inner, default=Count())
    return _sum(iter(inner))


def _convolution(eqn: Any) -> float:
    """Returns the operations of a convolution; taps that fall on padding are none."""
    (x, kernel), out = (v.aval.shape for v in eqn.invars), eqn.outvars[0].aval.shape
    params = eqn.params
    of_x, of_kernel, of_out = params["dimension_numbers"]
    total = 2.0 * out[of_out[0]] * out[of_out[1]] * kernel[of_kernel[1]]
    for i, (low, _) in enumerate(params["padding"]):
        side, taps, places = x[of_x[2 + i]], kernel[of_kernel[2 + i]], out[of_out[2 + i]]
        spread, step = params["lhs_dilation"][i], params["window_strides"][i]
        first = np.arange(places)[:, None] * step - low
        seen = first + np.arange(taps)[None] * params["rhs_dilation"][i]
        inside = (seen >= 0) & (seen <= (side - 1) * spread) & (seen % spread == 0)
        total *= float(inside.sum())
    return total


def _moved(eqn: Any) -> float:
    return float(sum(size_of(v.aval) for v in (*eqn.invars, *eqn.outvars)))


def size_of(aval: Any) -> int:
    """Returns the bytes of an array of this kind."""
    dtype = aval.dtype
    width = 8 if jnp.issubdtype(dtype, jax.dtypes.extended) else dtype.itemsize
    return math.prod(aval.shape) * width


def _inner(eqn: Any) -> Iterator[tuple[core.Jaxpr, float]]:
    """Yields the programs inside an operation, and how often it runs them."""
    name, params = eqn.primitive.name, eqn.params
    times = 1.0
    if name == "scan":
        times = params["length"]
    elif name == "pallas_call":
        times = math.prod(n for n in params["grid_mapping"].grid if isinstance(n, int))
    elif name == "shard_map":
        axes = params.get("newly_manual_axes", params.get("manual_axes"))  # its name until jax 0.10
        times = math.prod(params["mesh"].shape[axis] for axis in axes)
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                yield each.jaxpr, float(times)
            elif isinstance(each, core.Jaxpr):
                yield each, float(times)
