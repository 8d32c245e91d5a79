"""docs/tpu.md: its commands are understood, and its figures are those of the kept plans."""

import json
import re
import subprocess
import sys

from stylecrafter_jax.cli import build_parser
from tests.launch.conftest import HERE, ROOT

PAGE = (ROOT / "docs/tpu.md").read_text()
# Every command as words behind each other: stylecrafter's own, and the ones that launchers run.
SHELL = """
set -euo pipefail
keep() { printf '%s\\0' "$@" >>"$WORDS"; printf '\\n\\0' >>"$WORDS"; }
stylecrafter() { keep "$@"; }
gcloud() { "$STAND_IN_PYTHON" -S -c 'import sys, stand_in; stand_in.parse(sys.argv[1:])' "$@"; }
launched() {
    "$ROOT/$1" "$2" --dry-run "${@:3}" >>"$PRINTED"
    while [ $# -gt 0 ] && [ "$1" != -- ]; do shift; done
    if [ $# -gt 1 ] && [ "$2" = stylecrafter ]; then keep "${@:3}"; fi
}
"""


def blocks():
    return "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S))


def test_every_command_is_understood_and_printed_by_a_dry_run(cloud, tmp_path):
    words, printed = tmp_path / "words", tmp_path / "printed"
    script = re.sub("^launch/", "launched launch/", blocks(), flags=re.M)
    # The launcher sends the current commit, and a tree under work differs from it.
    script = script.replace("tpu+=(--mount", "tpu+=(--allow-dirty --mount")
    script = script.replace("one=(--project", "one=(--allow-dirty --project")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    given = {"ROOT": str(ROOT), "WORDS": str(words), "PRINTED": str(printed)}
    ran = subprocess.run(
        ["bash", "-c", SHELL + script],
        env=cloud.environment | given | {"PYTHONPATH": str(HERE)},
        **{"cwd": tmp_path, "capture_output": True, "text": True},
    )
    assert ran.returncode == 0, ran.stderr
    assert cloud.calls() == []
    commands = [line.split("\0")[:-1] for line in words.read_text().split("\n\0") if line]
    assert len(commands) >= 12
    for command in commands:
        assert build_parser().parse_args(command).command == command[0]
    assert "v5litepod-16" in printed.read_text() and "sbatch" in printed.read_text()


def test_the_figures_are_those_of_the_kept_plans():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("| ")
    ]
    cells = {row[0].split(":")[0]: row[1:] for row in rows}
    for column, (name, steps) in enumerate((("stage1", 80_000), ("stage2", 10_000))):
        plan = json.loads((ROOT / f"benchmarks/results/plans/{name}_v5e.json").read_text())
        assert plan["command"].removesuffix(" --json") in PAGE
        least, expected = plan["roofline_seconds"], plan["compiler_seconds"]
        hours = [seconds * steps / 3600 for seconds in (least, expected)]
        assert cells["peak memory of a chip, GiB of 16"][column] == (
            f"{plan['hbm_peak_bytes'] / 2**30:.1f}"
        )
        assert cells["seconds of a step"][column] == f"{least:.3f}, {expected:.3f}"
        assert cells["steps of that size in the paper's recipe"][column].startswith(f"{steps:,}")
        assert cells["hours"][column] == f"{hours[0]:.1f}, {hours[1]:.1f}"
        assert cells["chip-hours of the 16"][column] == f"{16 * hours[0]:.0f}, {16 * hours[1]:.0f}"
        least, most = (round(1.2 * 16 * h) for h in hours)
        assert f"{least} to {most} for stage\n{column + 1}" in PAGE or (
            f"{least} to {most} for stage {column + 1}" in PAGE
        )
