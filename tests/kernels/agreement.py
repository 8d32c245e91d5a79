"""One comparison for all implementations of a kernel, with its reference in float64."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings

from tests.models.filled import normal

# Largest error over largest value: a layer's tolerance, and eight bits of mantissa.
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}
# Compiling an example takes a second or two.
few = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def assert_agrees(
    found: Callable[..., jax.Array],
    reference: Callable[..., jax.Array],
    arrays: Sequence[jax.Array],
    dtype=jnp.float32,
) -> None:
    """Compares values and gradients; the reference gets what `dtype` holds of the arrays.

    Args:
        found: an implementation.
        reference: the formula, which computes in its arguments' type.
        arrays: float32 arguments; those of `dtype` are rounded to it.
        dtype: of the first arguments and of the result; arrays of rank 1 stay float32.
    """
    arrays = [x if x.ndim == 1 else x.astype(dtype) for x in arrays]
    grad = normal(99, *arrays[0].shape).astype(dtype)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x, np.float64)) for x in (*arrays, grad)]
        wanted = [np.asarray(x) for x in _run(reference, exact)]
    names = ("value", *(f"gradient {i}" for i in range(len(arrays))))
    for name, ours, theirs in zip(names, _run(found, [*arrays, grad]), wanted, strict=True):
        error = np.abs(np.asarray(ours, np.float64) - theirs).max()
        assert error <= TOLERANCE[dtype] * np.abs(theirs).max(), (name, error)


def with_gradients(function):
    """Returns the function of its arguments and a gradient to its value and all gradients."""

    def run(*arrays):
        value, pull = jax.vjp(function, *arrays[:-1])
        return value, *pull(arrays[-1])

    return run


def _run(function, arrays):
    return jax.jit(with_gradients(function))(*arrays)


def normals(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Returns standard normal arrays."""
    return [normal(i, *shape) for i, shape in enumerate(shapes)]


def implementation(module, name: str, **sizes) -> Callable[..., jax.Array]:
    """Returns `xla`, or the Pallas kernel for a platform, which is interpreted here."""
    if name == "xla":
        return functools.partial(module.xla, **sizes)
    return functools.partial(module.fused, platform=name, **sizes)
