"""Rows of figures on their way from a section's process to the report. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATES = {
    "done": "done",
    "cut short": "cut short when its time was up",
    "failed": "failed; the log has the reason",
    "no time": "not begun, too little time was left",
    "not asked": "not asked for",
}

Row = Mapping[str, Any]


@dataclass(slots=True)
class Section:
    """A section's state and rows.

    Attributes:
        state: A key of `STATES`; empty while it runs.
        seconds: That it took.
        tables: Name of a table to its rows.
    """

    name: str
    state: str = ""
    seconds: float = 0.0
    tables: dict[str, list[Row]] = field(default_factory=dict)


def writer(path: Path) -> Callable[[str, Row], None]:
    """A function that adds a row to a file at once, so that a killed process leaves its rows."""

    def emit(table: str, row: Row) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([table, row]) + "\n")

    return emit


def read(path: Path) -> dict[str, list[Row]]:
    """Table to rows; empty if there is no file. An unfinished last line is left out."""
    found: dict[str, list[Row]] = {}
    if path.exists():
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        for line in whole.splitlines():
            table, row = json.loads(line)
            found.setdefault(table, []).append(row)
    return found
