"""What is measured already: a JSON line for each video, found by what decides its values."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stylecrafter_jax.foreign import parse_json
from stylecrafter_jax.metrics.measures import DEFINITION


class Ledger:
    """The lines of `items.jsonl`; a value is found by its fingerprint, whoever measured it.

    A last line that a stop cut short is dropped. JSON has no NaN: such a value is written as null.
    """

    def __init__(self, path: Path):
        """Reads the file, if there is one.

        Raises:
            ValueError: a line is damaged; names it.
        """
        self._path = path
        self._values: dict[str, float] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        data = self._path.read_bytes()
        whole, _, cut = data.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                row = parse_json(line)
                scores, fingerprints = row["scores"], row["fingerprints"]
                for name, fingerprint in fingerprints.items():
                    value = scores[name]
                    self._values[fingerprint] = math.nan if value is None else float(value)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                raise ValueError(f"{self._path}, line {number} is damaged; remove it") from error
        if cut:
            with self._path.open("r+b") as file:
                file.truncate(len(data) - len(cut))

    def find(self, fingerprint: str) -> float | None:
        """Returns a value that is measured already, or None."""
        return self._values.get(fingerprint)

    def add(
        self, about: Mapping[str, Any], scores: Mapping[str, float], prints: Mapping[str, str]
    ) -> None:
        """Writes one video's values; they are on disk when this returns.

        Args:
            about: what else the line says.
            scores: value by name.
            prints: fingerprint by name.
        """
        row = {**about, "scores": finite(scores), "fingerprints": dict(prints)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._values |= {prints[name]: value for name, value in scores.items()}


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Returns values with None for those that are not finite."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def fingerprint(
    name: str, identity: str, video: str, prompt: str, references: Sequence[str]
) -> str:
    """Returns a hash of everything that decides a value.

    Args:
        name: the metric.
        identity: of what measures it.
        video: SHA-256 of the video.
        prompt: its prompt.
        references: SHA-256 of its references.
    """
    parts = [DEFINITION, name, identity, video, prompt, list(references)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
