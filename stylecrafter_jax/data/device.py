"""Batches on their way to the devices, ahead of their use."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from stylecrafter_jax.data.pipeline import Batch, Batches

# Sample numbers stay on the host: they are for reports, and 64 bits wide.
HOST_ARRAYS = ("index",)


class DeviceBatches:
    """An iterator over batches whose arrays are on the devices before they are asked for.

    Its state is that of the last batch it returned, however many more are prepared.

    Args:
        batches: from the pipeline; belongs to this iterator from now on.
        sharding: how batches lie on the devices; each process gives its part. None is the default
            device.
        ahead: how many batches wait on the devices.
    """

    def __init__(
        self, batches: Batches, sharding: jax.sharding.Sharding | None = None, ahead: int = 2
    ):
        if ahead < 1:
            raise ValueError(f"ahead must be at least 1, got {ahead}")
        self.batches, self.sharding, self.ahead = batches, sharding, ahead
        self._state = batches.get_state()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._queue: queue.Queue[tuple[dict[str, Any] | None, Any]] = queue.Queue(ahead)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="device-batches")
            self._thread.start()
        batch, state = self._queue.get()
        if batch is None:
            self.close()
            raise state
        self._state = state
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the state after the last batch that was returned."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called."""
        self.close()
        self.batches.set_state(state)
        self._state = self.batches.get_state()

    def close(self) -> None:
        """Stops the thread and the pipeline's workers; iteration may go on where it stopped."""
        self._stop.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)  # it may wait to put its last batch
            except queue.Empty:
                continue
        self._thread = None
        self._stop = threading.Event()
        self._queue = queue.Queue(self.ahead)
        self.batches.set_state(self._state)

    def __enter__(self) -> "DeviceBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            for batch in self.batches:
                self._queue.put((self._put(batch), self.batches.get_state()))
                if self._stop.is_set():
                    return
            raise StopIteration
        except BaseException as error:  # whatever it is, the consumer must see it
            self._queue.put((None, error))

    def _put(self, batch: Batch) -> dict[str, Any]:
        return {
            name: np.array(x) if name in HOST_ARRAYS else self._to_device(x)
            for name, x in batch.items()
        }

    def _to_device(self, x: np.ndarray) -> jax.Array:
        if self.sharding is None:
            return jax.device_put(np.asarray(x))
        return jax.make_array_from_process_local_data(self.sharding, np.asarray(x))
