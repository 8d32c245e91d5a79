"""The demo model trained for long, undisturbed and with random kills: does anything pile up?

    python -m tests.faults.soak OUT [--steps 10000] [--kills 10] [--save FILE]

trains twice into OUT, looks at the processes twice a second, and writes what it saw to FILE or
OUT/soak.json: memory, open files, threads, processes, temporary files. Both runs must end alike,
bit for bit: metrics, weights, their average, the optimizer. The exit status says whether they do.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from stylecrafter_jax.train.experiment import Experiment, load_experiment, override
from tests.train.conftest import rows, state_of, torn

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "demo_stage1.py"
# Small pictures, so that ten thousand steps on two cores are minutes.
SETTINGS = (
    "data.height=16",
    "data.width=16",
    "data.image_batch=1",
    "train.log_every=10",
    "optimizer.name=adamw",
    "optimizer.decay_steps=null",
    "optimizer.schedule=constant",
)
MIB = 2**20


class Look(NamedTuple):
    """What a process held at a moment.

    Attributes:
        step: the newest that the run had logged.
        rss: resident memory in MiB.
        files: open file descriptors.
        threads: of the process.
        children: processes that it started.
        temporary: files in its folder for temporary files.
        torn: checkpoints under a temporary name in the run.
    """

    step: int
    rss: float
    files: int
    threads: int
    children: int
    temporary: int
    torn: int


def look(pid: int, run: Path, temporary: Path) -> Look | None:
    """Returns what a process holds, None if it is gone."""
    proc = Path("/proc") / str(pid)
    try:
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        children = [
            len((task / "children").read_text().split()) for task in (proc / "task").iterdir()
        ]
        files = len(list((proc / "fd").iterdir()))
    except (OSError, ValueError):
        return None
    if "VmRSS" not in status:
        return None  # it has just ended
    return Look(
        newest(run),
        int(status["VmRSS"].split()[0]) / 1024,
        files,
        int(status["Threads"]),
        sum(children),
        sum(1 for path in temporary.rglob("*") if path.is_file()),
        len(torn(run)),
    )


def newest(run: Path) -> int:
    """Returns the newest step that a run has logged."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 10_000))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def settings_of(steps: int) -> tuple[str, ...]:
    """Returns what is changed of the config."""
    return (*SETTINGS, f"train.steps={steps}", f"train.save_every={max(1, steps // 50)}")


def begin(run: Path, steps: int, temporary: Path) -> subprocess.Popen:
    """Starts the training, or lets it go on."""
    command = [sys.executable, "-m", "stylecrafter_jax", "train", str(CONFIG), "--out", str(run)]
    temporary.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    with run.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--quiet", "--set", *settings_of(steps)],
            env=env,
            stderr=log,
            stdout=log,
            cwd=ROOT,
        )


def watch(
    process: subprocess.Popen, run: Path, temporary: Path, stop_at: int, after: float = 0.0
) -> list[Look]:
    """Looks at a process until it ends, or kills it some seconds after it has logged a step."""
    looks = []
    while process.poll() is None:
        seen = look(process.pid, run, temporary)
        looks += [] if seen is None else [seen]
        if seen is not None and seen.step >= stop_at:
            time.sleep(after)
            process.kill()
        time.sleep(0.5)
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"the run ended with {process.returncode}; see {run.with_suffix('.log')}")
    return looks


def growth(looks: Sequence[Look]) -> dict[str, Any]:
    """Returns what a process held in its second fifth, when all is warm, and in its last."""
    last = looks[-1].step
    early = [x for x in looks if 0.2 * last <= x.step < 0.4 * last]
    late = [x for x in looks if x.step >= 0.8 * last]
    steps = np.mean([x.step for x in late]) - np.mean([x.step for x in early])
    rss = [float(np.median([x.rss for x in part])) for part in (early, late)]
    found: dict[str, Any] = {
        "rss_mib": {
            "early": rss[0],
            "late": rss[1],
            "per_1000_steps": 1000 * (rss[1] - rss[0]) / steps,
        }
    }
    for name in ("files", "threads", "children", "temporary", "torn"):
        found[name] = {
            "early": max(getattr(x, name) for x in early),
            "late": max(getattr(x, name) for x in late),
        }
    return found


def same(one: Path, other: Path, experiment: Experiment) -> bool:
    """Returns whether two runs logged the same metrics and hold the same newest checkpoint."""
    states = [state_of(run, experiment, experiment.bundle) for run in (one, other)]
    alike = jax.tree.leaves(jax.tree.map(np.array_equal, *states))
    return rows(one) == rows(other) and all(alike)


def soak(out: Path, steps: int, kills: int) -> dict[str, Any]:
    """Trains twice and returns what was seen; see the module."""
    straight, killed = out / "straight", out / "killed"
    begun = time.monotonic()
    looks = watch(begin(straight, steps, out / "tmp1"), straight, out / "tmp1", steps + 1)
    undisturbed = time.monotonic() - begun
    rng, ends = random.Random(0), []
    for at in sorted(rng.sample(range(steps // 20, steps - steps // 20), kills)):
        begun_again = begin(killed, steps, out / "tmp2")
        watch(begun_again, killed, out / "tmp2", at, after=rng.random())
        ends.append(newest(killed))
    last = watch(begin(killed, steps, out / "tmp2"), killed, out / "tmp2", steps + 1)
    return {
        "command": f"python -m tests.faults.soak OUT --steps {steps} --kills {kills}",
        "steps": steps,
        "minutes_undisturbed": undisturbed / 60,
        "undisturbed": growth(looks),
        "killed_at": ends,
        "left_after_kills": {"temporary": last[-1].temporary, "torn": last[-1].torn},
        "checkpoints": sorted(int(p.name) for p in (killed / "checkpoints").iterdir()),
        "ends_alike": same(straight, killed, override(load_experiment(CONFIG), settings_of(steps))),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the soak and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    found = soak(args.out, args.steps, args.kills)
    text = json.dumps(found, indent=1) + "\n"
    (args.save or args.out / "soak.json").write_text(text)
    print(text, end="")
    if not found["ends_alike"]:
        sys.exit("the runs do not end alike")


if __name__ == "__main__":
    main()
