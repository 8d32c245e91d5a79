"""Calls that Ctrl-C ends although a compiled program is running."""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from stylecrafter_jax.commands import statuses

T = TypeVar("T")
GRACE_SECONDS = 3.0


def interruptible(function: Callable[[threading.Event], T]) -> T:
    """Returns `function(stop)`, run on another thread so that this one keeps hearing Ctrl-C.

    Python tells the main thread of a Ctrl-C between two of its instructions, so one that waits for
    the compiler or a compiled program would hear of it minutes later. Here it hears at once and
    sets `stop`, which `function` looks at where it can. What still runs after a short grace is
    left behind, and the process then ends without waiting for it.
    """
    stop, ended = threading.Event(), threading.Event()
    results, errors = [], []

    def work():
        try:
            results.append(function(stop))
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    try:
        threading.Thread(target=work, daemon=True).start()
        ended.wait()  # not `join`, after whose interruption a thread counts as ended in Python 3.11
    except KeyboardInterrupt:
        stop.set()
        try:
            ended.wait(GRACE_SECONDS)
        finally:
            if not ended.is_set():
                # The interpreter must not be torn down under a running program: it would crash.
                atexit.register(_leave)
        raise
    if errors:
        raise errors[0]
    return results[0]


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(statuses.INTERRUPTED)
