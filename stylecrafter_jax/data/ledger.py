"""What was read from each source, what was refused and replaced, and why."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.files import write_text

# A rate means little before this many records.
FEWEST = 100
# More reasons than this, per source, are counted but not listed.
LISTED = 10_000


class Fault(NamedTuple):
    """A record that was drawn but could not be used."""

    index: int
    id: str
    reason: str


class Ledger:
    """Counts records read and refused per source, and lists the refused ones with reasons.

    A record counts each time it is drawn, once an epoch or so; the list has it once.

    Args:
        max_bad_rate: the share of records that may be refused; one more stops the run.

    Attributes:
        read: records that were read, usable or not, by source.
        refused: those of them that could not be used.
        quarantine: the last fault of each refused record, by source and index.
    """

    def __init__(self, max_bad_rate: float):
        if not 0.0 <= max_bad_rate <= 1.0:
            raise ValueError(f"max_bad_rate must be from 0 to 1, got {max_bad_rate}")
        self.max_bad_rate = max_bad_rate
        self.read: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.quarantine: dict[str, dict[int, Fault]] = {}

    def add(self, source: str, used: int, faults: Iterable[Fault]) -> None:
        """Adds one batch of `used` records, and those that were refused on the way.

        Raises:
            DataError: too many records of the source are refused.
        """
        faults = list(faults)
        self.read[source] = self.read.get(source, 0) + used + len(faults)
        self.refused[source] = self.refused.get(source, 0) + len(faults)
        listed = self.quarantine.setdefault(source, {})
        for fault in faults:
            if fault.index in listed or len(listed) < LISTED:
                listed[fault.index] = fault
        allowed = self.max_bad_rate * max(self.read[source], FEWEST)
        if faults and self.refused[source] > allowed:
            last = faults[-1]
            raise DataError(
                f"{self.refused[source]} of {self.read[source]} records read from {source} "
                f"cannot be used, more than the share of {self.max_bad_rate:g} that is allowed; "
                f"the last was {last.id}: {last.reason}"
            )

    def summary(self) -> str:
        """Returns one line on the refused records, empty if there are none."""
        return "; ".join(
            f"{source}: {count} of {self.read[source]} reads refused and replaced "
            f"({len(self.quarantine[source])} different records)"
            for source, count in self.refused.items()
            if count
        )

    def write(self, path: Path) -> None:
        """Writes the quarantine list: one JSON object a line with source, index, id, reason."""
        lines = [
            json.dumps({"source": source, **fault._asdict()}, ensure_ascii=False) + "\n"
            for source, faults in self.quarantine.items()
            for _, fault in sorted(faults.items())
        ]
        write_text(path, "".join(lines))

    def get_state(self) -> dict[str, Any]:
        """Returns everything but the allowed rate, as plain JSON values."""
        faults = {
            name: [list(f) for f in listed.values()] for name, listed in self.quarantine.items()
        }
        return {"read": dict(self.read), "refused": dict(self.refused), "faults": faults}

    def merge(self, state: dict[str, Any]) -> None:
        """Adds what `get_state` returned of another process's ledger."""
        other = Ledger(self.max_bad_rate)
        other.set_state(state)
        for counts, more in ((self.read, other.read), (self.refused, other.refused)):
            for source, count in more.items():
                counts[source] = counts.get(source, 0) + count
        for source, faults in other.quarantine.items():
            listed = self.quarantine.setdefault(source, {})
            listed.update({i: fault for i, fault in faults.items() if len(listed) < LISTED})

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_state` returned."""
        self.read = dict(state["read"])
        self.refused = dict(state["refused"])
        self.quarantine = {
            name: {fault[0]: Fault(*fault) for fault in faults}
            for name, faults in state["faults"].items()
        }
