"""Batches that all processes of a run have, or none of them; and how they agree to stop.

A process that alone wanted to stop, or had no more data, would leave the others waiting for it in
the next step for ever. So each says with every batch whether it goes on (`step.HALT`), the step
reduces that beside the gradient, and all see the same answer after the same step.
"""

import collections
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from stylecrafter_jax.data.device import DeviceBatches
from stylecrafter_jax.data.ledger import Ledger
from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.foreign import reason
from stylecrafter_jax.processes import gathered, leads, several, together
from stylecrafter_jax.sharding import batch_sharding, own_blocks
from stylecrafter_jax.train.step import FAILED, GO, HALT, STOP

# Failures are seen at most two batches late.
_KEPT = 4


def own_ledger(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the data's state as a process takes it up: the ledger of all goes to the first."""
    return state if leads() else {**state, "ledger": Ledger(0.0).get_state()}


class Feed:
    """A run's batches, on the devices, and the verdict of all processes on going on.

    Args:
        batches: this process's part of every batch.
        mesh: the devices of the run; None is one device.
        done: steps done before.

    Attributes:
        ledger: what was read and refused: by this process, and up to the last save by the others.
        error: why this process cannot go on; None as long as it can.
    """

    def __init__(self, batches: DeviceBatches, mesh: Mesh | None, done: int):
        self.ledger: Ledger = batches.batches.ledger
        self.error: Exception | None = None
        self._batches, self._mesh, self._done = batches, mesh, done
        self._last: dict[int, dict[str, Any]] = {}  # of each stream, for a step without a batch
        self._said: dict[int, jax.Array] = {}  # on the devices, once for all steps
        self._states = collections.deque([(done, batches.get_state())], _KEPT)

    def next(self, stop: bool) -> tuple[dict[str, Any], np.ndarray] | None:
        """Returns a batch and its records' numbers; None where the run ends without another.

        Args:
            stop: whether this process was asked to stop.

        Raises:
            DataError, ElsewhereError: the first batch of a stream cannot be made on some process.
        """
        stream = self._batches.batches.stream_of(self._done)
        if not several():
            batch = self._draw() if self.error is None else None
        elif stream not in self._last:
            batch = together(self._first)
        else:
            batch = (self._draw() if self.error is None else None) or self._last[stream]
        if batch is None:
            return None
        self._done += 1
        self._states.append((self._done, self._batches.get_state()))
        self._last[stream] = batch
        arrays = {name: x for name, x in batch.items() if name != "index"}
        if several():
            arrays[HALT] = self._say(FAILED if self.error else STOP if stop else GO)
        return arrays, batch["index"]

    def source(self, step: int) -> str:
        """Returns the name of the source that the batch of a step is of."""
        return self._batches.batches.names_of(step - 1, ())[0]

    def names(self, step: int, index: np.ndarray) -> dict[str, Any]:
        """Returns what reports call the batch of a step; all processes must call it.

        Args:
            step: how many steps are done after it.
            index: the numbers of this process's records.

        Returns:
            `source`, and of the batch's rows in their order `index`, their numbers, and `records`,
            their ids.
        """
        own = np.ravel(index).tolist()
        source, ids = self._batches.batches.names_of(step - 1, own)
        blocks = self._blocks()
        size = len(own) // len(blocks)
        found = {}
        # Processes may hold blocks in any order, and share them.
        for theirs, *columns in gathered([blocks, own, ids]):
            rows = list(zip(*columns, strict=True))
            for place, block in enumerate(theirs):
                found[block] = rows[place * size : (place + 1) * size]
        rows = [row for _, block in sorted(found.items()) for row in block]
        return {
            "source": source,
            "index": [number for number, _ in rows],
            "records": [name for _, name in rows],
        }

    def _blocks(self) -> list[int]:
        """Returns which blocks of a batch's rows this process has."""
        return [0] if self._mesh is None else own_blocks(self._mesh)[0]

    def fail(self, error: Exception) -> None:
        """Ends the run on all processes, after the steps that are under way."""
        self.error = self.error or error

    def verdict(self, said: int, stop: bool) -> int:
        """Returns what all processes do now.

        Args:
            said: what they said with the last step looked at.
            stop: whether this process was asked to stop; decides where it is alone.
        """
        if several():
            return said
        return FAILED if self.error else STOP if stop else GO

    def check(self) -> None:
        """Raises what kept a process from going on; all call it at the end."""
        together(self._raise)

    def state(self, done: int) -> dict[str, Any]:
        """Returns the data's state after a step, one for all processes; all must call it."""
        state = next(state for step, state in self._states if step == done)
        if not several():
            return state
        self.ledger = Ledger(self.ledger.max_bad_rate)
        counted: set[int] = set()
        for blocks, own in gathered([self._blocks(), state["ledger"]]):
            if not counted >= set(blocks):  # of processes with the same rows one has read them
                self.ledger.merge(own)
            counted |= set(blocks)
        return {**state, "ledger": self.ledger.get_state()}

    def _draw(self) -> dict[str, Any] | None:
        try:
            return next(self._batches)
        except (DataError, OSError) as error:
            self.error = error
        except Exception as error:  # such as of a worker that is gone: no process may wait for us
            self.error = DataError(f"the data cannot be read: {reason(error)}")
            self.error.__cause__ = error
        return None

    def _first(self) -> dict[str, Any]:
        batch = self._draw() if self.error is None else None
        self._raise()
        assert batch is not None
        return batch

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def _say(self, code: int) -> jax.Array:
        if code not in self._said:
            assert self._mesh is not None, "several processes share a mesh"
            rows = np.full(len(self._blocks()), code, np.int32)
            where = batch_sharding(self._mesh)
            self._said[code] = jax.make_array_from_process_local_data(where, rows)
        return self._said[code]
