"""launch/gpu_slurm.sh against stand-ins for SLURM's commands."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from tests.launch.conftest import HERE, ROOT

SCRIPT = ROOT / "launch/gpu_slurm.sh"


class Cluster:
    def __init__(self, folder):
        self.folder, self.jobs = folder, folder / "jobs"
        self.jobs.mkdir(parents=True)
        self.environment = os.environ | {
            "PATH": os.pathsep.join([str(HERE / "slurm_bin"), os.environ["PATH"]]),
            "STAND_IN_SLURM": str(self.jobs),
            "STAND_IN_PYTHON": sys.executable,
        }

    def run(self, *words, status=0):
        ended = subprocess.run(
            [SCRIPT, *map(str, words)],
            **{"env": self.environment, "cwd": self.folder, "capture_output": True, "text": True},
        )
        assert ended.returncode == status, ended.stderr
        return ended.stdout, ended.stderr

    def log(self):
        path = self.folder / "slurm-a.log"
        return path.read_text() if path.exists() else ""

    def ended(self, number="1"):
        path = self.jobs / number / "ended"
        return path.exists() and path.read_text()


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path / "cluster")
    yield made
    for job in made.jobs.iterdir():
        if not made.ended(job.name):
            os.killpg(int((job / "pid").read_text()), 9)


NAME = ("--name", "a")
SMALL = ("--nodes", "2", "--gpus-per-node", "2")


def test_a_job_runs_one_process_for_each_gpu(cluster, cloud):
    program = 'echo "$SLURM_PROCID $SLURM_LOCALID $(command -v python) $1"'
    words = (*SMALL, "--venv", sys.prefix, "--time", "1:00:00", "--partition", "gpu")
    out, _ = cluster.run("submit", *NAME, *words, "--", "bash", "-c", program, "-", "a  b")
    assert out == "1\n"
    assert cloud.until(cluster.ended) == "0"
    python = f"{sys.prefix}/bin/python"
    said = sorted(line for line in cluster.log().splitlines() if "python" in line)
    assert said == [f"{i} {i % 2} {python} a  b" for i in range(4)]
    options = json.loads((cluster.jobs / "1/options.json").read_text())
    assert options["--requeue"] and options["--signal"] == "TERM@120"
    assert options["--time"] == "1:00:00" and options["--open-mode"] == "append"
    assert cluster.run("logs", *NAME)[0] == cluster.log()


def test_what_saved_lost_a_process_or_was_killed_is_queued_again(cluster, cloud):
    program = 'for i in 3 4 137; do [ -e "$1$i" ] || { touch "$1$i"; exit $i; }; done; echo end'
    words = ("--nodes", "1", "--gpus-per-node", "1", "--", "bash", "-c", program, "-")
    cluster.run("submit", *NAME, *words, cluster.folder / "ended_with_")
    assert cloud.until(cluster.ended) == "0"
    said = [line for line in cluster.log().splitlines() if "ended with" in line or "end" == line]
    assert said == [
        *(f"gpu_slurm.sh: the command ended with {n}" for n in (3, 4, 137)),
        *("end", "gpu_slurm.sh: the command ended with 0"),
    ]


@pytest.mark.parametrize(
    ("ends", "lines"),
    [(1, ["the command ended with 1"]), (4, ["the command ended with 4", "queued again"] * 1)],
)
def test_an_error_is_not_queued_again_and_restarts_are_limited(cluster, cloud, ends, lines):
    words = ("--gpus-per-node", "1", "--max-restarts", "1", "--", "bash", "-c", f"exit {ends}")
    cluster.run("submit", *NAME, *words)
    assert cloud.until(cluster.ended) == "1"
    said = [
        line.removeprefix("gpu_slurm.sh: ")
        for line in cluster.log().splitlines()
        if not line.startswith("srun: ")
    ]
    more = [] if ends == 1 else [lines[0], "1 restarts are used up (--max-restarts)"]
    assert said == lines + more


def test_an_error_of_one_task_counts_more_than_the_others_that_lost_it(cluster, cloud):
    program = '[ "$SLURM_PROCID" != 1 ] || exit 1; exit 4'
    cluster.run("submit", *NAME, *SMALL, "--max-restarts", "1", "--", "bash", "-c", program)
    assert cloud.until(cluster.ended) == "1"
    assert "gpu_slurm.sh: the command ended with 1" in cluster.log()
    assert "queued again" not in cluster.log()


def test_stop_lets_the_command_save_and_is_the_end(cluster, cloud):
    program = 'trap "echo saved; exit 3" TERM; echo ready; while :; do sleep 0.1; done'
    cluster.run("submit", *NAME, *SMALL, "--", "bash", "-c", program)
    cloud.until(lambda: cluster.log().count("ready") == 4)
    assert cluster.run("status", *NAME)[0] == "1 a R\n"
    cluster.run("stop", *NAME)
    assert cloud.until(cluster.ended) == "3"
    assert cluster.log().count("saved") == 4 and "queued again" not in cluster.log()
    _, err = cluster.run("stop", *NAME, status=1)
    assert err == "gpu_slurm.sh: there is no job a in the queue\n"


def test_delete_ends_the_job_at_once(cluster, cloud):
    cluster.run("submit", *NAME, "--gpus-per-node", "1", "--", "sleep", "60")
    cloud.until((cluster.jobs / "1/tasks").exists)
    cluster.run("delete", *NAME)
    assert cluster.ended() == "cancelled"


def test_a_dry_run_prints_commands_that_can_be_pasted(cluster):
    words = (*SMALL, "--container", "image.sqsh", "--mount", "/data=/in", "--dry-run")
    out, _ = cluster.run("submit", *NAME, *words, "--", "echo", "a  b")
    command = shlex.split(out)
    assert command[0] == "sbatch" and command[-3:] == ["--", "echo", "a  b"]
    assert command[command.index(str(SCRIPT)) + 1 :][:3] == ["job", "--max-restarts", "10"]
    assert list(cluster.jobs.iterdir()) == []
    options = "--job-name a --nodes 2 --gpus-per-node 2 --ntasks-per-node 2".split()
    assert set(options) <= set(command)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("submit", "--", "ls"), "--name is missing"),
        (("submit", *NAME), "submit needs -- COMMAND..."),
        (
            ("submit", *NAME, "--nodes", "two", "--", "ls"),
            "--nodes must be a whole number, got two",
        ),
        (("submit", *NAME, "--venv", "no", "--", "ls"), "--venv: there is no no/bin/python"),
        (("submit", *NAME, "--mount", "/a=/b", "--", "ls"), "--mount is for --container"),
        (("submit", *NAME, "--colour", "red"), "there is no option --colour"),
        (("job", "--", "ls"), "job is for inside of a job; submit queues one"),
        (("status", *NAME, "--", "ls"), "status takes no command"),
        (("queue",), "there is no command queue"),
    ],
)
def test_a_mistake_is_one_line_and_2(cluster, words, line):
    out, err = cluster.run(*words, status=2)
    assert (out, err) == ("", f"gpu_slurm.sh: {line} (--help lists the options)\n")
