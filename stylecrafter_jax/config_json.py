"""Frozen dataclasses from plain JSON values and back; unknown names and wrong types are refused."""

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, TypeVar

from stylecrafter_jax.config import ConfigError, require
from stylecrafter_jax.foreign import QUOTED, one_line

T = TypeVar("T")
LARGEST = 2**63  # what arrays and the formats of files can count


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config dataclass as plain JSON values."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else value


def from_dict(cls: type[T], values: Any, where: str = "") -> T:
    """Builds the config `cls` from JSON values; absent fields keep their defaults.

    Args:
        cls: a frozen dataclass.
        values: a dict, field name -> value; whatever else came is an error.
        where: the path of this object in the whole config, for messages.

    Raises:
        ConfigError: a field is unknown (the nearest right name is given) or has the wrong type.
    """
    require(
        isinstance(values, dict),
        f"{where or cls.__name__}: wanted an object, got {one_line(repr(values))}",
    )
    hints = typing.get_type_hints(cls)
    built = {}
    for name, value in values.items():
        path = f"{where}.{name}" if where else name
        if name not in hints:
            near = difflib.get_close_matches(name[:QUOTED], hints, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown setting {one_line(path)}{hint}")
        built[name] = _coerce(hints[name], value, path)
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        path = f"{where}.{field.name}" if where else field.name
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        require(optional or field.name in built, f"{path} is missing")
    return cls(**built)


def _coerce(hint: Any, value: Any, path: str) -> Any:
    """Returns `value` as the type `hint`, or raises ConfigError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(next(a for a in args if a is not type(None)), value, path)
    got = f"got {one_line(repr(value))}"
    if origin is Literal:
        require(value in args, f"{path}: wanted one of {', '.join(args)}, {got}")
        return value
    if origin is tuple:
        require(isinstance(value, list | tuple), f"{path}: wanted a list, {got}")
        wanted = len(value) if args[-1] is Ellipsis else len(args)
        require(len(value) == wanted, f"{path}: wanted {wanted} values, {got}")
        return tuple(_coerce(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, path)  # pyright: ignore[reportArgumentType]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        require(abs(value) < LARGEST, f"{path}: wanted a smaller number, {got}")
        return float(value)
    require(
        isinstance(value, hint) and not (hint is int and isinstance(value, bool)),
        f"{path}: wanted {hint.__name__}, {got}",
    )
    require(hint is not int or abs(value) < LARGEST, f"{path}: wanted a smaller number, {got}")
    return value
