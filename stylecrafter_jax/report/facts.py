"""What a run's folder says of the run; read only, also while the run goes on."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stylecrafter_jax.config_json import to_dict
from stylecrafter_jax.foreign import read_json
from stylecrafter_jax.train.events import read_events
from stylecrafter_jax.train.experiment import DataConfig, Experiment, leaves
from stylecrafter_jax.train.json_lines import read_json_lines
from stylecrafter_jax.train.metrics_log import SKIPPED, SPIKES, read_metrics
from stylecrafter_jax.train.runs import CHECKPOINTS, REFUSED, read_run
from stylecrafter_jax.train.samples import SAMPLES

Row = dict[str, Any]


class Checkpoint(NamedTuple):
    """A finished checkpoint, and the mean loss of the steps before it; None if it has none."""

    step: int
    loss: float | None


class Setting(NamedTuple):
    """One setting of the run's config, and whether it is not the default."""

    name: str
    value: Any
    changed: bool


class Facts(NamedTuple):
    """Everything that a report shows; lists are in the order of steps or of time.

    Attributes:
        name: of the run's folder.
        experiment: the config as plain values.
        bundle: path and hash of the model that the run started from.
        versions: of packages, when the run was last started.
        metrics: lines of `metrics.jsonl`.
        events: see `train.events`.
        skipped: updates that were not finite.
        spikes: losses that stand out.
        refused: records that could not be used.
        checkpoints: those that are kept.
        samples: grids by their step.
    """

    name: str
    experiment: dict[str, Any]
    bundle: dict[str, Any]
    versions: dict[str, Any]
    metrics: list[Row]
    events: list[Row]
    skipped: list[Row]
    spikes: list[Row]
    refused: list[Row]
    checkpoints: list[Checkpoint]
    samples: list[tuple[int, Path]]

    @property
    def settings(self) -> list[Setting]:
        """The config, one setting after another."""
        default = leaves(_defaults())
        return [
            Setting(name, value, name not in default or default[name] != value)
            for name, value in leaves(self.experiment).items()
        ]


def read_facts(run: Path) -> Facts:
    """Returns what the folder of a run says.

    Raises:
        ConfigError: it is no run, or its description is damaged.
    """
    found = read_run(run)
    return Facts(
        name=run.resolve().name,
        experiment=found["experiment"],
        bundle=_object(found.get("bundle")),
        versions=_object(found.get("versions")),
        metrics=_steps(read_metrics(run)),
        events=_steps(read_events(run)),
        skipped=_steps(read_metrics(run, SKIPPED)),
        spikes=_steps(read_metrics(run, SPIKES)),
        refused=read_json_lines(run / REFUSED),
        checkpoints=_checkpoints(run / CHECKPOINTS),
        samples=_samples(run / SAMPLES),
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _steps(rows: list[Row]) -> list[Row]:
    return [row for row in rows if isinstance(row.get("step"), int)]


def _checkpoints(folder: Path) -> list[Checkpoint]:
    """Returns checkpoints by the layout of `checkpoints.store`.

    Opening them with Orbax would take part in a run that may be going on.
    """
    found = []
    for path in folder.glob("*/metrics/metrics"):
        step = path.parents[1].name
        if step.isdecimal():
            try:
                loss = float(read_json(path)["loss"])
            except (ValueError, KeyError, TypeError):
                loss = None
            found.append(Checkpoint(int(step), loss))
    return sorted(found)


def _samples(folder: Path) -> list[tuple[int, Path]]:
    named = [(re.fullmatch(r"step_(\d+)\.png", path.name), path) for path in folder.glob("*.png")]
    return sorted((int(match[1]), path) for match, path in named if match)


def _defaults() -> Mapping[str, Any]:
    """Returns the config's defaults; what has none is absent."""
    values = to_dict(Experiment(stage="base", bundle="", data=DataConfig(images="none")))
    del values["stage"], values["bundle"], values["data"]["images"]
    return values
