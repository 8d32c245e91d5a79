"""A cloud that is a folder, and launchers that find it on their PATH."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.conftest import experiment as experiment
from tests.train.conftest import pictures as pictures

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SLICE = ("--project", "p", "--zone", "us-west4-a", "--name", "a")
WHAT = ("--type", "v5e-16", "--poll", "0.1", "--venv", str(Path(sys.prefix)), "--allow-dirty")
EMPTY = {
    "accounts": ["someone@example.com"],
    "projects": {"p": {"projectId": "p"}},
    "zones": {
        "us-west4-a": {
            "types": {"v5litepod-16": 2, "v5litepod-4": 1},  # and how many hosts these have here
            "versions": ["v2-alpha-tpuv5-lite"],
        },
        "europe-west4-b": {"types": {}, "versions": []},
    },
    "buckets": {
        "runs": {"hierarchicalNamespace": {"enabled": True}},
        "flat": {},
    },
    "clusters": {"c": {"name": "c", "status": "RUNNING"}},
    "requests": {},
    "nodes": {},
    "created": [],
    "waits": 2,  # looks at a request before its slice is there
    "never": False,  # whether it never is
    "refuse": "",  # why requests are refused
    "failing": {},  # command -> what its next calls fail with
    "environment": {},  # of the hosts, beside what they have anyway
}


class Cloud:
    """The stand-in's state, and what runs against it."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in EMPTY["buckets"]:
            (folder / "buckets" / name).mkdir(parents=True)
        (folder / "cloud.json").write_text(json.dumps(EMPTY))
        self.environment = {
            **{
                k: v
                for k, v in os.environ.items()
                if not k.startswith(("JAX_", "XLA_FLAGS", "SSH_"))
            },
            "PATH": os.pathsep.join([str(HERE / "bin"), os.environ["PATH"]]),
            "STAND_IN_CLOUD": str(folder),
            "STAND_IN_PYTHON": sys.executable,
            "TMPDIR": str(folder),
        }

    @property
    def state(self):
        return json.loads((self.folder / "cloud.json").read_text())

    def set(self, **values):
        (self.folder / "cloud.json").write_text(json.dumps(self.state | values))

    def calls(self):
        log = self.folder / "calls.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def start(self, *words, script="tpu.sh"):
        """Starts a launcher in a process group of its own, which hears SIGHUP also under nohup."""
        before = signal.signal(signal.SIGHUP, lambda *_: None)  # what is handled is not inherited
        try:
            return subprocess.Popen(
                [str(ROOT / "launch" / script), *map(str, words)],
                **{"env": self.environment, "cwd": self.folder, "start_new_session": True},
                **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
            )
        finally:
            signal.signal(signal.SIGHUP, before)

    def run(self, *words, script="tpu.sh", status=0, timeout=60):
        """Returns what a launcher says on standard output and standard error."""
        process = self.start(*words, script=script)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == status, f"{process.returncode}\n{out}\n{err}"
        return out, err

    def preempt(self, name="a", grace=10.0):
        code = "import sys; sys.path.insert(0, sys.argv[1]); import stand_in;"
        code += "stand_in.preempt(sys.argv[2], float(sys.argv[3]))"
        command = [sys.executable, "-S", "-c", code, str(HERE), name, str(grace)]
        subprocess.run(command, env=self.environment, check=True)

    def until(self, happened, seconds=30.0):
        """Waits for what `happened` says, and returns it."""
        end = time.monotonic() + seconds
        while not (value := happened()):
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.02)
        return value

    def running(self):
        """The processes of all hosts."""
        mark, found = f"STAND_IN_CLOUD={self.folder}".encode(), []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                values = environ.read_bytes()
            except OSError:
                continue
            if mark in values and b"STAND_IN_HOST=" in values:
                found.append(int(environ.parent.name))
        return found


@pytest.fixture
def tools(tmp_path):
    """A folder for PATH that has what the launchers use, but no cloud's tools."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("bash", "cat", "dirname", "env", "git", "grep", "mkdir", "mktemp", "rm", "sort",
                 "tr", "wc"):  # fmt: skip
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.fixture
def cloud(tmp_path):
    """An account with one project, two zones and two buckets; no process outlives the test."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("the stand-in finds its processes in /proc")
    made = Cloud(tmp_path / "cloud")
    yield made
    for pid in made.running():
        os.kill(pid, 9)
