"""What every reader of foreign bytes owes its caller, and the damage that is done to the bytes.

A reader returns something of the right type or raises its documented error with a message of one
line. It raises nothing else, ends soon, takes no more memory than it may, and leaves no file.

`HYPOTHESIS_PROFILE=long` looks at thousands of examples of each, drawn anew in every run; otherwise
there are few, and the same every time.
"""

import contextlib
import os
import resource
import signal
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
SECONDS = 20.0
MEGABYTE = 2**20
# What headers like to count with.
NUMBERS = (0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)


def fuzzed(examples: int, long: int = 5000):
    """Settings of a fuzz test: so many examples, the same ones every time unless it is long."""
    return settings(
        max_examples=long if LONG else examples,
        derandomize=not LONG,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged(draw, whole: bytes, most: int = 4) -> bytes:
    """The bytes of a valid file after some accidents; an attacker's come with `NUMBERS`."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, most))):
        # Headers decide most, so half of all places are near the start.
        near = draw(st.sampled_from((64, len(data))))
        at = draw(st.integers(0, max(0, min(near, len(data)) - 1)))
        length = draw(st.sampled_from((1, 2, 4, 16, 64, 1000)))
        match draw(st.sampled_from(("flip", "cut", "zero", "write", "insert", "move", "repeat"))):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:]
            case "zero":
                data[at : at + length] = bytes(len(data[at : at + length]))
            case "write":
                size, order = draw(st.sampled_from((2, 4, 8))), draw(st.sampled_from("lb"))
                number = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * size)
                order = "little" if order == "l" else "big"
                data[at : at + size] = number.to_bytes(size, order)
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "move":
                begin = draw(st.integers(0, max(0, len(data) - 1)))
                data[at:at] = data[begin : begin + length]
            case "repeat":
                data[at:at] = data[at : at + length] * draw(st.integers(1, 20))
    return bytes(data)


def bytes_like(*wholes: bytes):
    """Damaged valid files, valid beginnings with anything behind, and any bytes."""
    parts = [damaged(whole) for whole in wholes]
    heads = [st.binary(max_size=64).map(whole[:16].__add__) for whole in wholes]
    return st.one_of(*parts, *parts, *heads, st.binary(max_size=64))


@contextlib.contextmanager
def limits(megabytes: int = 1024, seconds: float = SECONDS):
    """What runs inside gets `MemoryError` for more memory and `TimeoutError` after that long."""

    def late(number, frame):
        raise TimeoutError(f"the reader did not end within {seconds:g} s")

    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (held + megabytes * MEGABYTE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def read_or_refused(read, error, *, name: str = "", megabytes: int = 1024):
    """Returns what `read()` gives, or the message of its documented error after checking that.

    Args:
        read: the reader, without arguments.
        error: the documented error.
        name: what the message must name.
        megabytes: the most memory that reading may take.
    """
    try:
        with limits(megabytes):
            return read(), None
    except error as refused:
        message = str(refused)
        assert message.strip() and "\n" not in message and "\r" not in message, repr(message)
        assert len(message) < 4000, f"{len(message)} characters: {message[:200]!r}"
        assert name in message, repr(message)
        return None, message


@contextlib.contextmanager
def nothing_left(folder: Path):
    """Checks that the folder holds the same names afterwards."""
    before = sorted(os.listdir(folder))
    yield
    assert sorted(os.listdir(folder)) == before
