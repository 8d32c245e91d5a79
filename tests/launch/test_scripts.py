"""Every script of launch/: syntax, ShellCheck, and help that names every option."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT

SCRIPTS = sorted((ROOT / "launch").rglob("*.sh"))
TOOLS = sorted((ROOT / "tests/launch").glob("*bin/*"))
NAMES = [str(path.relative_to(ROOT)) for path in SCRIPTS + TOOLS]


@pytest.mark.parametrize("name", NAMES)
def test_every_script_is_bash(name):
    assert (
        (ROOT / name).read_text().startswith(("#!/usr/bin/env bash\n", "# shellcheck shell=bash"))
    )
    checked = subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck comes with the extra dev")
    checked = subprocess.run([shellcheck, "-x", *NAMES], cwd=ROOT, capture_output=True, text=True)
    assert checked.stdout == ""


@pytest.mark.parametrize("name", ["launch/tpu.sh", "launch/gpu_slurm.sh", "launch/gke/run.sh"])
def test_help_names_every_option_that_is_parsed_and_no_other(name):
    helped = subprocess.run([ROOT / name, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0 and helped.stderr == ""
    script = (ROOT / name).read_text()
    if "launch/lib/act.sh" in script:
        script += (ROOT / "launch/lib/act.sh").read_text()
    patterns = re.findall(r"^\s+((?:-h \| )?--[-a-z| ]+)\)", script, flags=re.M)
    parsed = {word for pattern in patterns for word in re.findall(r"--[a-z][-a-z]+", pattern)}
    listed = set(re.findall(r"^  (--[-a-z]+)", helped.stdout, flags=re.M))
    assert parsed - {"--help"} == listed
