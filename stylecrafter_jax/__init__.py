"""`from stylecrafter_jax import StyleCrafter`; importing the package alone imports no JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stylecrafter_jax.diffusion.guidance import Guidance
    from stylecrafter_jax.generate import StyleCrafter
    from stylecrafter_jax.options import Options
    from stylecrafter_jax.request import Request

__all__ = ["Guidance", "Options", "Request", "StyleCrafter"]
_HOME = {
    "Guidance": "diffusion.guidance",
    "Options": "options",
    "Request": "request",
    "StyleCrafter": "generate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
