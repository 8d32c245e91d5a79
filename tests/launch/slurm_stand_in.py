"""A stand-in for SLURM's commands: a job is a process, and so is every task of its step.

It knows the options that gpu_slurm.sh uses, under the names of SLURM's manual pages and Pyxis's;
anything else is an error. Jobs are folders of `$STAND_IN_SLURM`; one that asks for it is run again
at once, as if it had waited.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ["STAND_IN_SLURM"])
VALUES = {
    "sbatch": "--job-name --output --nodes --gpus-per-node --ntasks-per-node --cpus-per-task"
    " --partition --account --qos --time --open-mode --signal",
    "srun": "--kill-on-bad-exit --wait --gpu-bind --cpus-per-task --container-image"
    " --container-mounts",
    "squeue": "--name --format",
    "scancel": "--signal",
    "scontrol": "",
}
ALONE = {"sbatch": "--parsable --requeue", "squeue": "--me --noheader"}


def parse(tool, words):
    """Returns options and what follows them."""
    options, words = {}, list(words)
    while words and words[0].startswith("--"):
        name, equals, value = words.pop(0).partition("=")
        if name in ALONE.get(tool, "").split() and not equals:
            options[name] = True
        elif name in VALUES[tool].split():
            options[name] = value if equals else words.pop(0)
        else:
            sys.exit(f"{tool}: unrecognized option {name}")
    return options, words


def sbatch(words):
    """Starts a job; what the script itself says of options comes before the command line's."""
    options, (script, *arguments) = parse("sbatch", words)
    lines = Path(script).read_text().splitlines()
    said = sum((line.split()[1:] for line in lines if line.startswith("#SBATCH")), [])
    options = parse("sbatch", said)[0] | options
    number = 1 + len(list(ROOT.iterdir()))
    job = ROOT / str(number)
    job.mkdir()
    shutil.copy(script, job / "slurm_script")
    (job / "options.json").write_text(json.dumps(options))
    command = [sys.executable, "-S", "-E", __file__, "job", str(number), *arguments]
    with Path(options["--output"]).open("a") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    (job / "pid").write_text(str(run.pid))
    print(number)


def job(words):
    """Runs a job until it does not ask to be run again."""
    number, *arguments = words
    folder = ROOT / number
    options = json.loads((folder / "options.json").read_text())
    restarts = 0
    while True:
        environment = os.environ | {
            "SLURM_JOB_ID": number,
            "SLURM_NTASKS": str(int(options["--nodes"]) * int(options["--ntasks-per-node"])),
            "SLURM_NTASKS_PER_NODE": options["--ntasks-per-node"],
            "SLURM_CPUS_PER_TASK": options["--cpus-per-task"],
        }
        if restarts:
            environment["SLURM_RESTART_COUNT"] = str(restarts)
        (folder / "again").unlink(missing_ok=True)
        script = ["bash", str(folder / "slurm_script"), *arguments]
        status = subprocess.run(script, env=environment).returncode
        if not (folder / "again").exists():
            break
        restarts += 1
    (folder / "ended").write_text(str(status))


def srun(words):
    """Runs every task; its status is the largest of theirs."""
    _, command = parse("srun", words)
    count, per_node = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = []
    for i in range(count):
        of_task = {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % per_node)}
        tasks.append(subprocess.Popen(command, env=os.environ | of_task))
    pids = " ".join(str(task.pid) for task in tasks)
    (ROOT / os.environ["SLURM_JOB_ID"] / "tasks").write_text(pids)
    statuses = [task.wait() for task in tasks]
    for i, status in enumerate(statuses):
        if status > 0:
            print(f"srun: error: node1: task {i}: Exited with exit code {status}", file=sys.stderr)
    sys.exit(max(128 - s if s < 0 else s for s in statuses))


def scontrol(words):
    if words[0] != "requeue":
        sys.exit(f"scontrol: invalid keyword {words[0]}")
    (ROOT / words[1] / "again").touch()


def squeue(words):
    options, _ = parse("squeue", words)
    for folder in sorted(ROOT.iterdir(), key=lambda path: int(path.name)):
        name = json.loads((folder / "options.json").read_text())["--job-name"]
        if name == options["--name"] and not (folder / "ended").exists():
            print(folder.name if "--format" in options else f"{folder.name} {name} R")


def scancel(words):
    """A signal goes to the tasks, not to the job's own script; without one the job ends."""
    options, (number,) = parse("scancel", words)
    if "--signal" in options:
        for pid in (ROOT / number / "tasks").read_text().split():
            os.kill(int(pid), signal.SIGTERM)
    else:
        os.killpg(int((ROOT / number / "pid").read_text()), signal.SIGKILL)
        (ROOT / number / "ended").write_text("cancelled")


if __name__ == "__main__":
    tools = {f.__name__: f for f in (sbatch, job, srun, scontrol, squeue, scancel)}
    tools[sys.argv[1]](sys.argv[2:])
