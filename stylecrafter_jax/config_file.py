"""Configs that are Python files: run by name, because the user names them."""

import runpy
from pathlib import Path
from typing import TypeVar

from stylecrafter_jax.config import ConfigError

T = TypeVar("T")


def call_in_file(path: Path, function: str, kind: type[T]) -> T:
    """Returns what a function without arguments in a Python file gives; the file is run.

    Raises:
        ConfigError: there is no such file, it fails, or the function gives no `kind`.
    """
    if not path.is_file():
        raise ConfigError(f"there is no config file {path}")
    try:
        value = runpy.run_path(str(path))[function]()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except KeyError as error:
        raise ConfigError(f"{path}: there is no {error}; wanted {function}()") from error
    except Exception as error:  # a user's file may fail in any way; the message is one line
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(value, kind):
        raise ConfigError(f"{path}: {function}() gave a {type(value).__name__}")
    return value
