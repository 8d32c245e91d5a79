"""SIGTERM and Ctrl-C as a wish to stop, which work that may not be cut off looks at."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

from tqdm import tqdm


@contextlib.contextmanager
def stop_signals(notice: str) -> Iterator[threading.Event]:
    """Gives an event that SIGTERM and Ctrl-C set; a second signal acts as if this were not here.

    Args:
        notice: said on standard error at the first signal.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in signals}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def hear(number, frame):
        stop.set()
        restore()
        tqdm.write(notice, file=sys.stderr)

    for number in signals:
        signal.signal(number, hear)
    try:
        yield stop
    finally:
        restore()
