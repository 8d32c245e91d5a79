"""A parity case: a folder with the original's inputs, outputs and weights (by name and shape)."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity import weights


@dataclasses.dataclass(frozen=True)
class Case:
    """One case folder; see `shared/parity/README.md` for the format."""

    path: Path
    info: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> "Case":
        return cls(path, json.loads((path / "case.json").read_text()))

    @property
    def config(self) -> dict[str, Any]:
        return self.info["config"]

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path / "data.npz") as data:
            return {name: data[name] for name in data.files}

    def input(self, name: str) -> np.ndarray | None:
        """Returns the input `name`, or None where the case has none."""
        return self.arrays.get("in_" + name)

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        return {k[3:]: v for k, v in self.arrays.items() if k.startswith("in_")}

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        return {k[4:]: v for k, v in self.arrays.items() if k.startswith("out_")}

    @functools.cached_property
    def manifest(self) -> list[tuple[str, tuple[int, ...]]]:
        rows = json.loads((self.path / "manifest.json").read_text())
        return [(name, tuple(shape)) for name, shape in rows]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns the case's PyTorch state dict."""
        return weights.state_dict(self.manifest)


@dataclasses.dataclass(frozen=True)
class Check:
    """One compared array: how far it is from the original and how far it may be."""

    name: str
    abs_error: float
    rel_error: float
    tolerance: str
    passed: bool


def compare(name: str, ours: Any, theirs: np.ndarray, *, atol: float, rtol: float) -> Check:
    """Returns the check `|ours - theirs| <= atol + rtol * max|theirs|`."""
    ours = np.asarray(ours)
    tolerance = f"{atol:g}+{rtol:g}*max"
    if ours.shape != theirs.shape:
        note = f"shape {ours.shape} wanted {theirs.shape}"
        return Check(name, np.inf, np.inf, note, False)
    if theirs.size == 0:
        return Check(name, 0.0, 0.0, tolerance, True)
    error = float(np.max(np.abs(ours.astype(np.float64) - theirs.astype(np.float64))))
    largest = float(np.max(np.abs(theirs.astype(np.float64))))
    passed = bool(np.isfinite(error)) and error <= atol + rtol * largest
    return Check(name, error, error / max(largest, 1e-30), tolerance, passed)
