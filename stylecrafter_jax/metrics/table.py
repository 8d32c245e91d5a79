"""One table as Markdown, written whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stylecrafter_jax.files import write_text


def write_markdown(
    path: Path,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Mapping[str, Any],
) -> None:
    """Writes a table, and below it a line for each note.

    Raises:
        ValueError: a row has another number of cells than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"wanted {len(header)} cells, got {len(row)}: {row}")
    lines = [_line(header), _line(["---"] * len(header)), *map(_line, rows)]
    lines += ["", *(f"- {name}: {_spelled(note)}" for name, note in notes.items())]
    write_text(path, "\n".join(lines).rstrip("\n") + "\n")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _spelled(note: Any) -> str:
    return ", ".join(map(str, note)) if isinstance(note, list | tuple) else str(note)
