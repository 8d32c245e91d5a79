"""The programs of a task with random weights and inputs, ready to run on the default device."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stylecrafter_jax.bench.timing import Runnable
from stylecrafter_jax.plan.count import count
from stylecrafter_jax.plan.tasks import Program


def runnable(program: Program, label: str = "") -> Runnable:
    """Returns a program, compiled, with arguments that are the same for all programs alike.

    Args:
        program: of a task.
        label: put after its name.
    """
    args = [filled(arg) for arg in program.args]
    traced = program.make(tuple(args)).trace(*args)
    work = count(traced.jaxpr.jaxpr)
    begun = time.perf_counter()
    compiled = traced.lower().compile()
    spent = time.perf_counter() - begun

    def run() -> Any:
        result = compiled(*args)
        if program.donated is not None:
            args[program.donated] = program.kept(result)
        return result

    name = f"{program.name} {label}".strip()
    return Runnable(name, run, spent, work.flops, work.bytes)


def filled(tree: Any) -> Any:
    """Returns arrays for abstract ones: small random numbers, zeros for whole ones, keys of 0."""
    rng = np.random.default_rng(0)

    def fill(kind: Any) -> Any:
        if not isinstance(kind, jax.ShapeDtypeStruct):
            return jnp.asarray(kind)
        if jnp.issubdtype(kind.dtype, jax.dtypes.prng_key):
            keys = jax.random.split(jax.random.key(0), int(np.prod(kind.shape)))
            return keys.reshape(kind.shape)
        if not jnp.issubdtype(kind.dtype, jnp.floating):
            return jnp.zeros(kind.shape, kind.dtype)
        numbers = rng.standard_normal(kind.shape, np.float32) * np.float32(0.02)
        return jnp.asarray(numbers, kind.dtype)

    return jax.tree.map(fill, tree)
