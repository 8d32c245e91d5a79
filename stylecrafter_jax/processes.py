"""The processes of one run: how they find each other, and what they agree on.

On several hosts the same command runs on each. JAX's distributed runtime connects the processes;
every one of them then sees all devices, and only the first writes what there is once for a run.
"""

import functools
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from stylecrafter_jax.foreign import reason
from stylecrafter_jax.programs import out_of_memory

T = TypeVar("T")
Cluster = Literal["given", "gketpu", "slurm", "gcetpu"]
# A message to the other processes is cut to this many letters.
LONGEST_MESSAGE = 1000
# What JAX, gloo, NCCL and the runtime of TPU slices say where a process does not answer.
_LOST = re.compile(
    "unavailable|deadline|aborted|cancelled|gloo|nccl|heartbeat|coordinat|barrier|connection|peer"
    "|megascale|preempt",
    re.IGNORECASE,
)
_CHIPS = (Path("/dev/accel0"), Path("/dev/vfio/0"))


class ElsewhereError(ValueError):
    """Another process of the run could not go on; the message is its own, with its number."""


class Given(NamedTuple):
    """What a user says of the processes; see `jax.distributed.initialize`.

    Attributes:
        coordinator: `host:port` of process 0.
        count: of processes.
        index: of this one, from 0.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


class Limits(NamedTuple):
    """How long the processes wait for each other, in seconds.

    Attributes:
        start: for all to be there.
        lost: for a sign of life; then JAX's runtime ends those that are left.
    """

    start: int = 300
    lost: int = 60


def start(
    given: Given | None = None,
    env: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> None:
    """Connects the processes of a run; must come before anything asks JAX for its devices.

    What is not given is read from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`. Without these, a slice of TPUs (Cloud TPU VMs, GKE) and a step of SLURM with
    several tasks are recognized. Anything else is one process.

    Args:
        given: what the user says; None is nothing.
        env: the environment variables; None takes the process's own.
        limits: how long to wait.

    Raises:
        ValueError: the description of the processes is not whole, or the others do not answer.
    """
    env = os.environ if env is None else env
    given = whole(given or Given(), env)
    cluster = find_cluster(given, env)
    if cluster is None:
        return
    # The way of the messages between CPUs, where the run is on CPUs.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    limits = limits or Limits()
    initialize = functools.partial(
        jax.distributed.initialize,
        initialization_timeout=limits.start,
        heartbeat_timeout_seconds=limits.lost,
    )
    try:
        if cluster == "given":
            initialize(*given)
        elif cluster == "gcetpu":
            initialize()
        else:
            initialize(cluster_detection_method=cluster)
    except (RuntimeError, ValueError) as error:
        if cluster == "gcetpu" and "coordinator_address should be defined" in str(error):
            return  # chips, but no cloud that knows of other hosts
        raise ValueError(f"cannot connect the processes ({cluster}): {reason(error)}") from error


def find_cluster(given: Given, env: Mapping[str, str]) -> Cluster | None:
    """Returns how the processes of this run find each other; None where there is only this one.

    Args:
        given: what the user says, whole or nothing of it.
        env: the environment variables.
    """
    if given.count is not None:
        return "given" if given.count > 1 else None
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or (hosts and int(env.get("MEGASCALE_NUM_SLICES", "1")) > 1):
        return "gketpu"
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in env:
        return "slurm"
    wanted = env.get("JAX_PLATFORMS", "tpu").split(",")
    if "tpu" in wanted and "TPU_SKIP_MDS_QUERY" not in env and _has_tpu():
        return "gcetpu"
    return None


def whole(given: Given, env: Mapping[str, str]) -> Given:
    """Returns a whole description of the processes, or an empty one.

    Raises:
        ValueError: it is neither.
    """

    def number(name: str) -> int | None:
        text = env.get(name)
        if text is None or text.isdecimal():
            return None if text is None else int(text)
        raise ValueError(f"{name} must be a number, got {text!r}")

    coordinator = given.coordinator or env.get("JAX_COORDINATOR_ADDRESS")
    count = number("JAX_NUM_PROCESSES") if given.count is None else given.count
    index = number("JAX_PROCESS_ID") if given.index is None else given.index
    if count == 1:
        return Given(None, 1, 0)
    if given.coordinator is None and count is None and index is None:
        return Given()  # the variable alone is JAX's own for a cluster that it recognizes
    if coordinator is None or count is None or index is None:
        raise ValueError(
            "several processes need a coordinator (host:port), their count and this one's index, "
            f"got {coordinator}, {count} and {index}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"the coordinator must be host:port, got {coordinator!r}")
    if not 0 <= index < count:
        raise ValueError(f"the index of {count} processes must be below their count, got {index}")
    return Given(coordinator, count, index)


def _has_tpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None and any(p.exists() for p in _CHIPS)


def several() -> bool:
    """Returns whether the run has more than this process."""
    return jax.process_count() > 1


def lost_another(error: BaseException) -> bool:
    """Returns whether an error is what a process meets where another one of the run is gone."""
    if not several() or not isinstance(error, RuntimeError) or out_of_memory(error):
        return False
    return _LOST.search(str(error)) is not None


def leads() -> bool:
    """Returns whether this process writes what there is once for a run."""
    return jax.process_index() == 0


def gathered(value: Any) -> list[Any]:
    """Returns the JSON values that all processes give, in their order; all must call it."""
    if not several():
        return [value]
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(own.size)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: own.size] = own
    rows = np.asarray(multihost_utils.process_allgather(padded))
    pairs = zip(rows, lengths, strict=True)
    return [json.loads(row[:length].tobytes().decode()) for row, length in pairs]


def together(function: Callable[[], T]) -> T:
    """Returns what a function returns, once it has returned on all processes; all must call it.

    Raises:
        ElsewhereError: it failed on another process. What it raises here is raised here.
    """
    if not several():
        return function()
    result, own = None, None
    try:
        result = function()
    except Exception as error:  # whatever it is, the others must not wait for this process
        own = error
    messages = gathered(None if own is None else reason(own, LONGEST_MESSAGE))
    if own is not None:
        raise own
    for index, message in enumerate(messages):
        if message is not None:
            raise ElsewhereError(f"process {index}: {message}")
    return result  # pyright: ignore  # it is what the function returned


def by_leader(function: Callable[[], T]) -> T | None:
    """Runs a function on the first process alone; the others wait for it and get None."""
    return together(lambda: function() if leads() else None)


def told(function: Callable[[], T]) -> T:
    """Returns on all processes the JSON value that a function returns on the first one alone."""
    return gathered(by_leader(function))[0]


def agree(asked: Mapping[str, Any]) -> None:
    """Checks that all processes were asked for the same; all must call it.

    Args:
        asked: JSON values, by what they are.

    Raises:
        ValueError: they were not; names a process and what is different there.
    """
    texts = {name: json.dumps(value, sort_keys=True) for name, value in asked.items()}
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    first, *others = gathered(hashes)
    for index, other in enumerate(others, start=1):
        different = [name for name in first if other.get(name) != first[name]]
        if different:
            raise ValueError(
                "all processes must be asked for the same: "
                f"process {index} has another {different[0]} than process 0"
            )
