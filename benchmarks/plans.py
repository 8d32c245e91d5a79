"""Plans of generation and both stages for TPUs that are not here, and what compiling them cost.

    pip install .[tpu]
    python benchmarks/plans.py [--only NAME ...]

Each row of `PLANS` on each kind of chip is one call of `stylecrafter plan` in a process of its own,
whose JSON is kept in `results/plans/NAME_CHIP.json`, with the command and its CPU-seconds. The
table of all that is kept is printed as Markdown.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from stylecrafter_jax.files import write_json

OUT = Path(__file__).parent / "results" / "plans"
ONE = {"v5e": "v5e:1x1", "v5p": "v5p:1x1x1", "v6e": "v6e:1x1"}
SIXTEEN = {"v5e": "v5e:4x4", "v5p": "v5p:2x2x4", "v6e": "v6e:4x4"}
# A host's chips, and a slice that holds the paper's batch at once: its 256 pictures, or 8 clips of
# which each four chips share one.
EIGHT = {"v5e": "v5e:2x4", "v5p": "v5p:2x2x2"}
LARGE = {"v5e": "v5e:4x8", "v5p": "v5p:2x4x4"}
V5E = {"v5e": "v5e:4x8"}
WHOLE = ["train.accumulate=1", "train.remat=full"]


def stage(number: int, mesh: str, *settings: str) -> list[str]:
    """Returns the options of a stage's plan."""
    config = {1: "configs/stage1_t2i.py", 2: "configs/stage2_t2v.py"}[number]
    return ["--config", config, "--mesh", mesh, "--set", *WHOLE, *settings]


PAPER = ("data.video_batch=8", "data.image_batch=128")
PLANS = {
    "generate": (ONE, []),
    "generate_fast": (ONE, ["--fast"]),
    "stage1": (SIXTEEN, stage(1, "fsdp=4", "data.image_batch=128")),
    "stage2": (SIXTEEN, stage(2, "fsdp=4", "data.video_batch=16", "data.image_batch=256")),
    "generate_frames": (EIGHT, ["--mesh", "frames=8"]),
    "generate_frames_tensor": (EIGHT, ["--mesh", "frames=4,tensor=2"]),
    "generate_large": (V5E, ["--mesh", "frames=16,tensor=2"]),
    "stage1_large": (LARGE, stage(1, "fsdp=4", "data.image_batch=256")),
    "stage1_replicated": (
        V5E,
        stage(1, "fsdp=4", "data.image_batch=256", "mesh.replicate_frozen=true"),
    ),
    "stage2_large": (LARGE, stage(2, "fsdp=4,frames=4", *PAPER)),
    "stage2_all_axes": (V5E, stage(2, "fsdp=2,frames=4,tensor=2", *PAPER)),
}
GIB = 2.0**30


def main() -> None:
    """Plans what is asked for, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="*", metavar="NAME_CHIP", help="none prints the table alone"
    )
    args = parser.parse_args()
    for name, (topologies, options) in PLANS.items():
        for chip, topology in topologies.items():
            if args.only is None or f"{name}_{chip}" in args.only:
                plan(OUT / f"{name}_{chip}.json", ["plan", "--topology", topology, *options])
    print(table())


def plan(path: Path, arguments: list[str]) -> None:
    """Runs one plan and keeps what it says."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "stylecrafter_jax", *arguments, "--json", "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 4):  # 4: it does not fit
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = sum(getattr(after, t) - getattr(before, t) for t in ("ru_utime", "ru_stime"))
    content = {"command": " ".join(["stylecrafter", *arguments, "--json"]), "cpu_seconds": seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content | json.loads(done.stdout))
    print(f"{path.name}: {seconds:.0f} CPU-seconds", flush=True)


def table() -> str:
    """Returns all that is kept as Markdown."""
    titles = ("plan", "chips", "mesh", "peak GiB", "of", "TFLOP", "GB moved", "GB sent")
    titles += ("at the roofline, s", "bound on use", "compiler's estimate, s", "CPU-s to compile")
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for name, (topologies, _) in PLANS.items():
        for chip in topologies:
            path = OUT / f"{name}_{chip}.json"
            if path.exists():
                lines.append("| " + " | ".join(row(name, json.loads(path.read_text()))) + " |")
    return "\n".join(lines)


def row(name: str, plan: dict[str, Any]) -> list[str]:
    """Returns a plan's line."""
    estimate = plan["compiler_seconds"]
    return [
        name,
        plan["topology"],
        " ".join(f"{axis} {n}" for axis, n in plan["mesh"].items() if n > 1) or "each alone",
        f"{plan['hbm_peak_bytes'] / GIB:.1f}" + ("" if plan["fits"] else ", does not fit"),
        f"{plan['hbm_bytes'] / GIB:.0f}",
        f"{plan['flops'] / 1e12:.1f}",
        f"{plan['bytes_accessed'] / 1e9:.0f}",
        f"{plan['collective_bytes'] / 1e9:.1f}",
        f"{plan['roofline_seconds']:.3f}",
        f"{plan['mfu_bound']:.0%}",
        "none" if estimate is None else f"{estimate:.3f}",
        f"{plan['cpu_seconds']:.0f}",
    ]


if __name__ == "__main__":
    main()
