"""What the programs may cost: operations, bytes moved, memory; no clock is involved.

    python -m tests.plan.budgets [cpu] [v5e] [cpu:2x2] [v5e:2x2]

writes `budgets.json` anew, for a change that is meant to cost more or that costs less. One device,
or four as a mesh of each task's own. Those of the full-size model are `benchmarks/results/plans`,
which `benchmarks/plans.py` compiled.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.data.transforms import Drop
from stylecrafter_jax.options import Options
from stylecrafter_jax.plan.compiled import QUICK, Figures, compile_figures
from stylecrafter_jax.plan.report import make_plan
from stylecrafter_jax.plan.tasks import Task, generation, training
from stylecrafter_jax.plan.topology import parse
from stylecrafter_jax.sharding import make_mesh, on_mesh
from stylecrafter_jax.train.experiment import DataConfig, Experiment, TrainConfig
from tests.conftest import TINY

FILE = Path(__file__).with_name("budgets.json")
# XLA moves a few buffers otherwise from one version to the next; a copy too many is far more.
SLACK = 1.05
GATED = ("flops", "bytes_accessed", "temporary")
# Four devices: heads and channels are split, and of a video the frames, of training the weights.
MESHES = {"generate": {"frames": 2, "tensor": 2}, "stage1": {"fsdp": 2, "tensor": 2}}
PLANS = Path(__file__).parents[2] / "benchmarks" / "results" / "plans"


def tasks(axes: Mapping[str, Any]) -> dict[str, Task]:
    """Returns small tasks with every kind of layer: three guidance branches, and stage 1."""
    data = DataConfig(images="none", height=32, width=32, image_batch=2, drop=Drop(text=0.1))
    types = TrainConfig(compute_dtype="float32", frozen_dtype="float32", remat="full")
    experiment = Experiment(stage="stage1", bundle="none", data=data, train=types)
    config = dataclasses.replace(TINY, size=dataclasses.replace(TINY.size, height=32, width=32))
    options = Options(steps=4, cache_interval=2).resolved(config)
    types = {"dtype": "float32", "param_dtype": "float32"}
    return {
        "generate": generation(config, options, axes=axes.get("generate"), **types),
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
    """Returns the gated figures of every program of the small tasks, compiled for CPU or a TPU.

    Args:
        where: `cpu` or a chip; one of it, or with `:2x2` four of them.
    """
    found = {}
    chip, _, several = where.partition(":")
    meshes = MESHES if several else {}
    for task_name, task in tasks(meshes).items():
        axes = meshes.get(task_name)
        if chip == "cpu":
            figures = on_cpu(task, axes)
        else:
            plan = make_plan(task, parse(where), axes=axes, compiler_options=QUICK)
            figures = {part.name: part.figures for part in plan.parts}
        for name, each in figures.items():
            values = dataclasses.asdict(each)
            gated = {key: float(values[key]) for key in GATED}
            sent = {f"{kind} bytes": size for kind, size in each.collectives.items()}
            found[f"{task_name}: {name}"] = gated | sent
    return found


def on_cpu(task: Task, axes: Mapping[str, int] | None) -> dict[str, Figures]:
    """Returns the figures of a task's programs on CPU devices."""
    mesh = None
    if axes is not None:
        inner = {axis: size for axis, size in axes.items() if axis != "data"}
        mesh = make_mesh(np.array(jax.devices()[: math.prod(axes.values())]), **inner)
    found = {}
    with on_mesh(mesh):
        for program in task.programs:
            found[program.name] = compile_figures(program.traced(mesh).lower(), None)
    return found


def planned() -> dict[str, dict[str, Any]]:
    """Returns the plans of the full-size model for several chips, as compiled, by file name."""
    plans = {path.stem: json.loads(path.read_text()) for path in sorted(PLANS.glob("*.json"))}
    return {
        name: plan for name, plan in plans.items() if plan["chips"] > 1 and "held_bytes" in plan
    }


def main() -> None:
    """Writes the budgets."""
    budgets = json.loads(FILE.read_text()) if FILE.exists() else {}
    for where in sys.argv[1:] or ["cpu", "v5e", "cpu:2x2", "v5e:2x2"]:
        budgets[where] = measured(where)
    budgets["full_size_flops"] = full_size()
    FILE.write_text(json.dumps(budgets, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
