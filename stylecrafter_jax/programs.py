"""Compiled programs, one per function and kind of arguments, kept in memory and on disk."""

import os
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import PartitionSpec

# JAX's own setting, which goes before ours.
CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
LARGEST_CACHE = 4 * 2**30
LEAST_SECONDS = 0.05  # of compiling; JAX keeps nothing under a second unless told


def out_of_memory(error: BaseException) -> bool:
    """Returns whether a program, or its arguments, did not fit into a device's memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and (
        "RESOURCE_EXHAUSTED" in str(error) or "Ran out of memory" in str(error)
    )


def keep_on_disk() -> str | None:
    """Has JAX keep compiled programs between runs, the least used of them going first.

    They lie in the folder that `JAX_COMPILATION_CACHE_DIR` names, else in the user's cache; where
    that cannot be written, none is kept. A program that calls back into Python is never kept.

    Returns:
        The folder, or None.
    """
    if CACHE_VARIABLE in os.environ:
        return os.environ[CACHE_VARIABLE]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "stylecrafter_jax" / "programs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", LARGEST_CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return str(folder)


class Programs:
    """Compiles a function ahead of its first call and keeps it for arguments of the same kind.

    Arguments of one kind agree in shapes, types and the devices they are committed to.

    Attributes:
        compile_seconds: time spent compiling so far.
    """

    def __init__(self):
        self._compiled: dict[Hashable, Callable[..., Any]] = {}
        self.compile_seconds = 0.0

    def get(
        self,
        key: Hashable,
        function: Callable[..., Any],
        *args: Any,
        donate: tuple[int, ...] = (),
        whole: bool = True,
    ) -> Callable[..., Any]:
        """Returns `function` compiled for `args`; on a mesh, see `jitted`.

        Args:
            key: tells this function from others; functions of one key must compute the same.
            function: a pure function of arrays; what it closes over must be named in `key`.
            *args: trees of arrays.
            donate: numbers of the arguments whose memory the results may take.
            whole: on a mesh, its results are whole on every device.
        """
        leaves, structure = jax.tree.flatten(args)
        kinds = tuple((leaf.shape, str(leaf.dtype), _placement(leaf)) for leaf in leaves)
        signature = (key, structure, kinds)
        if signature not in self._compiled:
            start = time.perf_counter()
            self._compiled[signature] = self._compile(function, args, donate, whole)
            self.compile_seconds += time.perf_counter() - start
        return self._compiled[signature]

    def _compile(self, function, args: tuple[Any, ...], donate: tuple[int, ...], whole: bool):
        lowered = jitted(function, args, donate=donate, whole=whole).lower(*args)
        return lowered.compile()

    def run(
        self, key: Hashable, function: Callable[..., Any], *args: Any, whole: bool = True
    ) -> Any:
        """Returns `function(*args)`, compiled; see `get`."""
        return self.get(key, function, *args, whole=whole)(*args)


def jitted(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    donate: tuple[int, ...] = (),
    whole: bool = True,
) -> Any:
    """Returns `function` under `jax.jit`, what enters and leaves it laid on the mesh in use.

    Nothing is left to XLA there, so that what one program returns suits the next one, and a plan
    knows how it lies: arguments lie as they are committed, or else whole on every device; what
    takes a donated argument's place lies as that did.

    Args:
        function: a pure function of arrays.
        args: trees of arrays, or of abstract ones that say how they lie.
        donate: numbers of the arguments whose memory the results may take.
        whole: results are whole on every device; otherwise as the function itself lays them.
    """
    settings: dict[str, Any] = {"donate_argnums": donate}
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return jax.jit(function, **settings)

    def lies(leaf: Any) -> Any:
        own = getattr(leaf, "sharding", None) if _abstract(leaf) else _placement(leaf)
        return PartitionSpec() if own is None else own

    settings["in_shardings"] = jax.tree.map(lies, args)
    if donate:
        settings["out_shardings"] = jax.tree.map(lies, args[donate[0]])
    elif whole:
        settings["out_shardings"] = PartitionSpec()
    return jax.jit(function, **settings)


def _abstract(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _placement(leaf: Any) -> jax.sharding.Sharding | None:
    """Returns the devices an array must stay on; None where it may go to any."""
    return leaf.sharding if getattr(leaf, "committed", False) else None
