"""launch/lib/host.sh on a host that has to install what mounts buckets."""

import os
import subprocess

from tests.launch.conftest import ROOT

SUDO = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case $* in
    "tee "*) cat >/dev/null ;;
    "apt-get "*update) [ "$(grep -c update "$CALLS")" -gt 1 ] ;;
esac
"""


def test_what_is_installed_waits_for_a_host_that_upgrades_itself(tmp_path):
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    alone = "#!/bin/sh\nexit 0\n"
    for name, text in (
        ("sudo", SUDO),
        ("sleep", alone),
        ("curl", alone),
        ("lsb_release", alone),
        ("findmnt", "#!/bin/sh\nexit 1\n"),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "host.sh").write_text((ROOT / "launch/lib/host.sh").read_text())
    subprocess.run(["tar", "-cf", "code.tar", "-T", "/dev/null"], cwd=tmp_path, check=True)
    words = ("--container", "image", "--mount", f"gs://runs={tmp_path}/mnt")
    subprocess.run(
        ["bash", "host.sh", "setup", "id", *words],
        env={**os.environ, "PATH": f"{tools}:/usr/bin:/bin", "CALLS": str(calls)},
        **{"cwd": tmp_path, "check": True},
    )
    asked = [line for line in calls.read_text().splitlines() if line.startswith("apt-get")]
    assert len(asked) == 3 and "update" in asked[0] and "update" in asked[1]
    assert "-o DPkg::Lock::Timeout=600 install -y gcsfuse" in asked[2]
