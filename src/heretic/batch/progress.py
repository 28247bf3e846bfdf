"""How far a running job has come, by the events that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from heretic.runs.events import EVENTS
from heretic.system.display import count_of

_TAIL = 64 * 2**10
"""Bytes at the end of a file of events that are looked at."""


def progress(folder: Path) -> str:
    """What the job of a folder does now, in a few words; empty before its run folder is known."""
    for event in reversed(_last_events(folder)):
        match event.get("event"):
            case "TrialFinished" | "TrialStarted" | "SearchStarted":
                return f"trials {count_of(event.get('completed', 0), event.get('n_trials'))}"
            case "StageStarted":
                return str(event.get("title", ""))
            case "SearchFinished":
                return "the search has ended"
    return ""


def latest_events(folder: Path) -> Path | None:
    """The file of events below a job's folder that was written last; None if there is none."""
    with suppress(OSError):  # it is being made, or moved
        return max(folder.glob(f"*/{EVENTS}"), key=lambda path: path.stat().st_mtime, default=None)
    return None


def _last_events(folder: Path) -> list[Mapping[str, Any]]:
    """The last whole lines of the newest file of events below the folder."""
    lines: list[bytes] = []
    path = latest_events(folder)
    with suppress(OSError):  # it is being made, or moved
        if path is not None:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL))
                lines = file.read().splitlines()
    found: list[Mapping[str, Any]] = []
    for line in lines:
        with suppress(ValueError):  # cut by the tail's beginning, or being written
            row = json.loads(line)
            found += [row] if isinstance(row, dict) else []
    return found
