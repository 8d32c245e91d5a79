"""What the programs may cost: operations, bytes moved, memory; no clock is involved.

    python -m tests.plan.budgets [cpu] [v5e]

writes `budgets.json` anew, for a change that is meant to cost more or that costs less.
"""

import dataclasses
import json
import sys
from pathlib import Path

from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.data.transforms import Drop
from stylecrafter_jax.options import Options
from stylecrafter_jax.plan.compiled import QUICK, compile_figures
from stylecrafter_jax.plan.report import make_plan
from stylecrafter_jax.plan.tasks import Task, generation, training
from stylecrafter_jax.plan.topology import parse
from stylecrafter_jax.train.experiment import DataConfig, Experiment, TrainConfig
from tests.conftest import TINY

FILE = Path(__file__).with_name("budgets.json")
# XLA moves a few buffers otherwise from one version to the next; a copy too many is far more.
SLACK = 1.05
GATED = ("flops", "bytes_accessed", "temporary")


def tasks() -> dict[str, Task]:
    """Returns small tasks with every kind of layer: three guidance branches, and stage 1."""
    data = DataConfig(images="none", height=32, width=32, image_batch=2, drop=Drop(text=0.1))
    types = TrainConfig(compute_dtype="float32", frozen_dtype="float32", remat="full")
    experiment = Experiment(stage="stage1", bundle="none", data=data, train=types)
    config = dataclasses.replace(TINY, size=dataclasses.replace(TINY.size, height=32, width=32))
    options = Options(steps=4, cache_interval=2).resolved(config)
    types = {"dtype": "float32", "param_dtype": "float32"}
    return {
        "generate": generation(config, options, **types),
        "stage1": training(experiment, config),
    }


def full_size() -> dict[str, float]:
    """Returns the operations of full-size samples, as they are and fast."""
    found = {}
    for name in ("exact", "fast"):
        options = Options(fast=name == "fast").resolved(ModelConfig())
        found[name] = generation(ModelConfig(), options).flops
    return found


def measured(where: str) -> dict[str, dict[str, float]]:
    """Returns the gated figures of every program of the small tasks, compiled for CPU or a TPU."""
    found = {}
    for task_name, task in tasks().items():
        if where == "cpu":
            figures = {p.name: compile_figures(p.traced().lower(), None) for p in task.programs}
        else:
            plan = make_plan(task, parse(where), compiler_options=QUICK)
            figures = {part.name: part.figures for part in plan.parts}
        for name, each in figures.items():
            values = dataclasses.asdict(each)
            found[f"{task_name}: {name}"] = {key: float(values[key]) for key in GATED}
    return found


def main() -> None:
    """Writes the budgets."""
    budgets = json.loads(FILE.read_text()) if FILE.exists() else {}
    for where in sys.argv[1:] or ["cpu", "v5e"]:
        budgets[where] = measured(where)
    budgets["full_size_flops"] = full_size()
    FILE.write_text(json.dumps(budgets, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
