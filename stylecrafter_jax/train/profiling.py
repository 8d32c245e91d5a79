"""A profile of some steps of a run, for XProf and TensorBoard."""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from stylecrafter_jax.config import ConfigError

PROFILE = "profile"


class Span(NamedTuple):
    """Which steps to profile, counted from 1 where this process begins; both are included."""

    first: int
    last: int


def parse_span(text: str) -> Span:
    """Returns the steps of a text such as "10:20".

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--profile: wanted two steps such as 10:20, got {text!r}")
    return Span(int(found[1]), int(found[2]))


class Profiler:
    """Writes `RUN/profile`; to be closed in any case.

    Args:
        folder: where to.
        span: which steps; None profiles nothing.
    """

    def __init__(self, folder: Path, span: Span | None):
        self._folder, self._span = folder, span
        self._step, self._active = 0, False

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Is around every step, the wait for its batch included."""
        self._step += 1
        if self._span is None:
            yield
            return
        if self._step == self._span.first:
            jax.profiler.start_trace(str(self._folder))
            self._active = True
        if not self._active:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=self._step):
            yield

    def end(self, result: Any) -> None:
        """Ends the profile after its last step, whose result is waited for."""
        if self._active and self._span is not None and self._step >= self._span.last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes what was profiled so far; says so where nothing was."""
        if self._active:
            self._active = False
            jax.profiler.stop_trace()
            self._span = None
        elif self._span is not None:
            tqdm.write(
                f"no profile: it begins at step {self._span.first} from the start of this process, "
                f"which did {self._step}",
                file=sys.stderr,
            )
            self._span = None
