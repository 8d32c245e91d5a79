"""Weights of a module in both frameworks; their values depend on the PyTorch name alone."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from stylecrafter_jax import params as weights_of
from tests.parity import weights

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def torch_name(name: str) -> str:
    """Returns the PyTorch name of a parameter of a module."""
    *path, leaf = name.replace("/", ".").split(".")
    return ".".join([*path, LEAVES.get(leaf, leaf)])


def shapes_of(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a module's parameters in PyTorch's names and layout."""
    return {name: value.shape for name, value in _state(_shapes(module, args, kwargs)).items()}


def fill(
    module: nn.Module, *args: Any, **kwargs: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns a module's variables and the same weights as a PyTorch state dict."""
    shapes = _shapes(module, args, kwargs)
    state = _state(shapes)
    own = {}
    for name in shapes:
        value = state[torch_name(name)]
        is_kernel = name.split("/")[-1] == "kernel"
        own[name] = np.moveaxis(value, (0, 1), (-1, -2)) if is_kernel else value
    return {"params": weights_of.nest(own)}, state


def _shapes(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
    return weights_of.flatten(variables.get("params", {}))


def _state(shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    state = {}
    for name, value in shapes.items():
        shape = value.shape
        if name.split("/")[-1] == "kernel":
            shape = (shape[-1], shape[-2], *shape[:-2])
        state[torch_name(name)] = weights.tensor(torch_name(name), shape)
    return state


def normal(seed: int, *shape: int) -> jax.Array:
    """Returns standard normal float32 numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
