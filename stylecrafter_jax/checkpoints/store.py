"""Training checkpoints with Orbax: state, data position and metrics, whole or not at all.

Frozen weights are not stored: a run names the bundle it started from by the hash of its manifest.
"""

import contextlib
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from stylecrafter_jax.foreign import one_line, reason

# Orbax writes under such a name, and renames what is complete.
TORN = ".orbax-checkpoint-tmp"
# Orbax measures by the machine's clock, which may be set meanwhile, how long a save takes: it gives
# up after 20 minutes of the whole and 5 of making folders in the background. So here it waits as
# long as it takes, and makes them at once; only processes that wait for each other give up.
_NEVER = 100 * 365 * 24 * 3600  # in seconds
_MEETING = 600_000  # in milliseconds


class Restored(NamedTuple):
    """What a run continues from."""

    step: int
    state: Any
    data: dict[str, Any]


class Store:
    """Saves and restores a run's checkpoints in one folder.

    Saving is asynchronous: it copies the arrays, returns, and writes beside the final name. The
    newest `keep_last` checkpoints stay, and the one of the lowest `loss` in its metrics.

    Args:
        path: the folder; made if absent.
        keep_last: how many of the newest to keep.
        keep_best: how many of those with the lowest loss to keep.

    Raises:
        CheckpointError: the metrics of a checkpoint that is there are damaged.
    """

    def __init__(self, path: Path, *, keep_last: int = 3, keep_best: int = 1):
        policies: list[Any] = [preservation_policy.LatestN(keep_last)]
        if keep_best:
            # The policy keeps the last of the sorted list, so reverse puts the lowest loss there.
            policies.append(
                preservation_policy.BestN(get_metric_fn=_loss, reverse=True, n=keep_best)
            )
        options = ocp.CheckpointManagerOptions(
            create=True,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(
                timeout_secs=_NEVER,
                barrier_sync_fn=_meet,
                create_directories_asynchronously=False,
            ),
            best_fn=_loss,
            best_mode="min",
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
        )
        try:
            self._manager = ocp.CheckpointManager(path.resolve(), options=options)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"the metrics of a checkpoint in {path.resolve()} are damaged: {one_line(error)}"
            ) from error

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, data: Mapping[str, Any], loss: float) -> None:
        """Begins to save a checkpoint; waits for the one before to be written.

        Raises:
            CheckpointError: the loss is not finite: a state like that never replaces a healthy one;
                or this checkpoint, or the one before, cannot be written.
        """
        if not math.isfinite(loss):
            raise CheckpointError(f"step {step}: the loss is {loss}; this state is not saved")
        if step in self._manager.all_steps():
            return
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(dict(data))
                ),
                metrics={"loss": loss},
            )

    def restore(self, like: Any, step: int | None = None) -> Restored:
        """Returns a checkpoint, the newest unless a step is named.

        Args:
            like: a state of the same structure, shapes, dtypes and shardings.
            step: which checkpoint.

        Raises:
            CheckpointError: there is none, it is damaged, or it does not fit.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with self._reading(step) as step:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
            state, data = found["state"], found["data"]
            if not isinstance(data, dict):
                raise TypeError(f"the data's position is {data!r}")
        return Restored(step, state, data)

    def in_host_memory(self, wanted: Any, step: int | None = None) -> Any:
        """Returns parts of a checkpoint's state as NumPy arrays; nothing else of it is read.

        Args:
            wanted: a state of the same structure; of what is wanted abstract arrays, and `...` of
                the rest, which stays as it is.
            step: which checkpoint; None is the newest.

        Raises:
            CheckpointError: there is none, it is damaged, or it does not fit.
        """
        with self._reading(step) as step:
            # Orbax takes the kind of array from an example, which here has no memory of its own.
            like = jax.tree.map(
                lambda x: x if x is ... else np.broadcast_to(np.zeros((), x.dtype), x.shape), wanted
            )
            args = ocp.args.PyTreeRestore(
                like, restore_args=ocp.checkpoint_utils.construct_restore_args(like)
            )
            path = self._manager.directory / str(step) / "state"
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                state = reader.restore(path, args=args)
            jax.tree.map(_check_shape, like, state)
        return state

    @contextlib.contextmanager
    def _reading(self, step: int | None) -> Iterator[int]:
        """Gives the step that is read, the newest unless one is named; any failure is one line."""
        step = self.latest() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise CheckpointError(f"{self._manager.directory} has no checkpoint of step {step}")
        try:
            yield step
        except Exception as error:  # Orbax and its readers raise anything on a broken file
            raise CheckpointError(
                f"the checkpoint of step {step} in {self._manager.directory} is damaged or does "
                f"not fit the config: {type(error).__name__}: {one_line(error, 400)}"
            ) from error

    def sweep(self) -> None:
        """Removes what saves that were killed or failed have left; one process calls it, no save.

        A failed save may still be writing: what cannot be removed now is left to the next sweep.
        """
        for path in Path(self._manager.directory).glob(f"*{TORN}"):
            shutil.rmtree(path, ignore_errors=True)

    def writing(self) -> bool:
        """Returns whether a checkpoint is still being written."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Returns once everything begun is on disk.

        Raises:
            CheckpointError: it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the folder.

        Raises:
            CheckpointError: a checkpoint cannot be written.
        """
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self):
        """Turns what Orbax and TensorStore raise when a disk is full into one line."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"cannot write a checkpoint to {self._manager.directory}: {_reason(error)}; the "
                "earlier ones are intact"
            ) from error


def _meet(*, key: str, timeout_ms: int) -> None:
    """Waits for the other processes of a run, which a failed one of them would never end."""
    wait = ocp.multihost.get_barrier_sync_fn()
    wait(key=key, timeout_ms=min(timeout_ms, _MEETING))


def _reason(error: Exception) -> str:
    """Returns the system's reason, which TensorStore hides at the end of a long line, or a line."""
    found = re.search(r"\[(?:os_error_code='|Errno )(\d+)\b", str(error))
    return os.strerror(int(found[1])) if found else reason(error, 300)


def _loss(metrics: Mapping[str, float]) -> float:
    return float(metrics["loss"])


def _check_shape(wanted: Any, found: Any) -> None:
    if wanted is not ... and wanted.shape != found.shape:
        raise ValueError(f"wanted an array of {wanted.shape}, got {found.shape}")
