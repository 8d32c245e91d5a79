"""Commands of several processes: how they end where one stops, fails or is lost."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn

from stylecrafter_jax.commands import statuses
from stylecrafter_jax.foreign import reason
from stylecrafter_jax.processes import (
    Given,
    find_cluster,
    leads,
    lost_another,
    several,
    start,
    whole,
)

# JAX's runtime ends all processes as soon as the first one is gone: so that one goes last.
GRACE_SECONDS = 3.0


@contextlib.contextmanager
def losing_none() -> Iterator[None]:
    """Ends this process at once where it has lost another, or is interrupted, one of several.

    At the usual end of a process JAX waits for the others, which may be waiting for this one.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not several():
            raise
        _leave(statuses.INTERRUPTED, "interrupted; finished results are kept")
    except RuntimeError as error:
        if not lost_another(error):
            raise
        _leave(
            statuses.LOST,
            f"another process of the run is gone; run all again to go on: {reason(error)}",
        )


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """Ends this process at once where it alone may have failed, one of several.

    It is for what computes on all devices: the others may be waiting for this process in the
    middle of a program, where it could not tell them. What `losing_none` is for goes on to it.
    """
    try:
        yield
    except Exception as error:
        if not several() or lost_another(error):
            raise
        if not isinstance(error, ValueError | OSError):
            traceback.print_exc()
        _leave(statuses.ERROR, f"error: {' '.join(str(error).split()) or type(error).__name__}")


def refuse_several(command: str, instead: str) -> None:
    """Refuses to run in several processes; must come before anything asks JAX for its devices.

    Raises:
        ValueError: there are several; says what to do instead.
    """
    cluster = find_cluster(whole(Given(), os.environ), os.environ)
    refused = cluster is not None
    if cluster == "gcetpu":
        start()  # only then it is known how many hosts the slice has
        refused = several()
    if refused:
        raise ValueError(f"{command} runs in one process, not in several; {instead}")


def _leave(status: int, line: str) -> NoReturn:
    """Says a line and ends this process without waiting for any other."""
    with contextlib.suppress(OSError):
        print(f"stylecrafter: {line}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    if leads():
        time.sleep(GRACE_SECONDS)
    os._exit(status)
