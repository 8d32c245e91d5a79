"""A user's own function by its name, `module:function`, such as a DINO or an optical flow."""

import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Hook(NamedTuple):
    """A function, and what tells it from others: its name and its file's SHA-256."""

    function: Callable[..., Any]
    identity: str


def load_hook(name: str) -> Hook:
    """Returns a function by its name; modules in the working folder are found as well.

    Raises:
        ValueError: there is no such module or function, or importing it fails; names it.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"wanted module:function, got {name!r}")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise ValueError(f"cannot import {module_name}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"the module {module_name} has no function {function_name}")
    file = getattr(module, "__file__", None)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else "built in"
    return Hook(function, f"{name} {digest}")
