"""Real processes on this machine that run one command together."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from stylecrafter_jax.config_json import to_dict
from tests.flags import FLAGS

ROOT = Path(__file__).parents[1]


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    out: str
    err: str


def write_config(experiment, path: Path) -> Path:
    """Writes an experiment as a config file."""
    path.write_text(
        "import json\n"
        "from stylecrafter_jax.config_json import from_dict\n"
        "from stylecrafter_jax.train.experiment import Experiment\n"
        f"VALUES = {json.dumps(to_dict(experiment))!r}\n"
        "def get_config(): return from_dict(Experiment, json.loads(VALUES))\n"
    )
    return path


def launch(
    count: int,
    arguments: Sequence[object],
    *,
    others: Sequence[object] = (),
    devices: int = 2,
    before: Callable[[], None] | None = None,
    **env: str,
) -> list[subprocess.Popen]:
    """Starts `stylecrafter` with the same arguments in so many processes, connected if several.

    Args:
        count: of processes.
        arguments: of the command.
        others: more of them, for all processes but the first.
        devices: of each process.
        before: what each of them calls first.
        **env: environment variables.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    given = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS.format(devices),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "PYTHONPATH": str(ROOT),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
    }
    command = [sys.executable, "-m", "tests.train.worker"]
    return [
        subprocess.Popen(
            [*command, *map(str, [*arguments, *(others if index else ())])],
            cwd=ROOT,
            env={**os.environ, **given, "JAX_PROCESS_ID": str(index), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
        )
        for index in range(count)
    ]


def wait(condition: Callable[[], object], seconds: float = 120) -> None:
    """Returns once a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def finish(processes: Sequence[subprocess.Popen], seconds: float = 240) -> list[Ended]:
    """Returns how they ended; none is left running, whatever happens."""
    try:
        return [
            Ended(process.returncode, *output)
            for process in processes
            for output in [process.communicate(timeout=seconds)]
        ]
    finally:
        for process in processes:
            process.kill()
