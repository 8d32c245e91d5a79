"""A disk that fills up and folders that cannot be written, as far as a test can make them."""

import contextlib
import ctypes
import os
import resource
import signal


@contextlib.contextmanager
def largest_file(size):
    """Files cannot grow over `size` bytes: the write itself fails, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def obey_modes():
    """Has this process's programs obey the modes of files, which root otherwise may ignore."""
    drop, override, read_search = 24, 1, 2  # of prctl, and the two capabilities
    if os.getuid() == 0:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        for capability in (override, read_search):
            if prctl(drop, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "cannot drop a capability")
