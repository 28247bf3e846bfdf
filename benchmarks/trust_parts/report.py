"""The table of planted faults."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peer.report import machine
from benchmarks.trust_parts.cases import Row

HEADER: Sequence[str] = ("planted", "command", "as it should be", "what is said of it")


def report(found: Sequence[Row], command: str) -> str:
    """The page: how it was made, and a row for each fault and control."""
    faults = [row for row in found if not row.is_control]
    controls = [row for row in found if row.is_control]
    told, quiet = (sum(row.is_right for row in some) for some in (faults, controls))
    lines = [HEADER, ["---"] * len(HEADER), *map(_cells, found)]
    summary = (
        f"{told} of {len(faults)} faults are told. Of {len(controls)} controls, {quiet} have "
        "nothing told of them."
    )
    made = f"Machine: {machine()}. Made by:\n\n    {command}"
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# Planted faults, and what is said of them\n\n{made}\n\n{summary}\n\n{rows}\n"


def _cells(row: Row) -> list[str]:
    said = (row.said or "nothing").replace("|", "\\|")
    return [row.fault, f"`{row.command}`", "yes" if row.is_right else "**no**", said]
