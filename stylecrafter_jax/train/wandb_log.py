"""A run's metrics in Weights & Biases, for those who ask for it; nothing else needs its package."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.files import write_text
from stylecrafter_jax.foreign import JSONError, read_json, reason

WANDB_FILE = "wandb.json"


class WandbLog:
    """Sends what `MetricsLog` writes; a run that goes on is the same run there.

    Mode and key are the environment's, as the package reads them: `WANDB_MODE=offline` keeps
    everything in `RUN/wandb`, for `wandb sync`.

    Args:
        project: in which it is shown.
        run: the run's folder, which exists; `wandb.json` in it keeps the run's id.
        config: what it trains, as plain values.

    Raises:
        ConfigError: the package is not installed, or does not accept the run.
    """

    def __init__(self, project: str, run: Path, config: Mapping[str, Any]):
        wandb = _package()
        path = run / WANDB_FILE
        run_id = _stored_id(path) if path.exists() else secrets.token_hex(4)
        try:
            self._run = wandb.init(
                project=project,
                id=run_id,
                resume="allow",
                name=run.name,
                dir=str(run),
                config=dict(config),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise ConfigError(f"--wandb {project}: {reason(error)}") from error
        write_text(path, json.dumps({"project": project, "id": run_id}) + "\n")
        self._image = wandb.Image
        # Steps that are done again after a stop would be refused as the package's own counter.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Sends one line of metrics."""
        self._run.log({"step": step, **metrics})

    def write_image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Sends an image."""
        self._run.log({"step": step, name: self._image(image)})

    def close(self) -> None:
        """Waits until everything is sent, or stored where it is not."""
        self._run.finish()


def _stored_id(path: Path) -> str:
    try:
        return str(read_json(path)["id"])
    except (JSONError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: it has no id") from error


def check_wandb() -> None:
    """Refuses `--wandb` where the package is not installed.

    Raises:
        ConfigError: it is not; the message says how to install it.
    """
    _package()


def _package() -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]  # an extra of its own
    except ImportError as error:
        raise ConfigError(
            "--wandb needs the package wandb: pip install 'stylecrafter_jax[wandb]'"
        ) from error
    return wandb
