"""Progress of a compiled program, told to a function that may stop it by raising."""

import contextlib
import logging
from collections.abc import Callable, Iterator

import numpy as np

Progress = Callable[[int, int], None]


class Reporter:
    """What a compiled program calls; passes each step on to the function of the current run."""

    def __init__(self):
        self._progress: Progress | None = None
        self._raised: BaseException | None = None

    def __call__(self, step: int, total: int, preview: np.ndarray | None = None) -> None:
        if self._progress is not None:
            try:
                self._progress(int(step), int(total))
            except BaseException as error:
                self._raised = error
                raise

    @contextlib.contextmanager
    def to(self, progress: Progress | None) -> Iterator[None]:
        """Passes steps on to `progress`, and raises what it raised as it was.

        JAX would log a traceback and raise an error of its own that holds another one as text.
        """

        def keep(record: logging.LogRecord) -> bool:
            return not (record.exc_info and record.exc_info[1] is self._raised)

        self._progress, self._raised = progress, None
        logger = logging.getLogger("jax._src.callback")
        logger.addFilter(keep)
        try:
            yield
        except Exception as error:
            if self._raised is None or self._raised is error:
                raise
            raise self._raised from None
        finally:
            logger.removeFilter(keep)
            self._progress = self._raised = None
