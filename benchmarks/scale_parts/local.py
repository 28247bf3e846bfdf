"""Real workers on this machine: the demo's search, timed by its events."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

SETTINGS = ["--search", "tpe", "--no-racing", "--patience", "0", "--plans-at-once", "1"]
"""All trials do the same work, whoever evaluates them."""


def local_rows(workers: Sequence[int], trials: int) -> list[dict[str, Any]]:
    """Trials a minute of the demo's search with workers, beside one process on one core."""
    alone = _rate(0, trials)
    rows = [{"workers": "none, one core", "trials a minute": alone, "times": 1.0}]
    for many in workers:
        rate = _rate(many, trials)
        rows.append({"workers": many, "trials a minute": rate, "times": rate / alone})
    return rows


def _rate(workers: int, trials: int) -> float:
    """Trials a minute of one search; without workers it is pinned to one core.

    The first trials, one for each worker, only start the clock: models are loaded before them.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "heretic", "demo", *SETTINGS]
        command += ["--n-trials", str(trials), "--workers", str(workers)]
        command += ["--save-directory", f"{folder}/saved", "--study-checkpoint-dir", f"{folder}/runs"]
        cores = os.sched_getaffinity(0)
        pinned = {min(cores)} if workers == 0 else cores
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, pinned),
        )
        if result.returncode != 0:
            raise SystemExit(result.stdout[-2000:] + result.stderr[-2000:])
        ends = _ends(Path(folder))
    begin = max(1, workers)
    return 60 * (len(ends) - begin) / (ends[-1] - ends[begin - 1])


def _ends(folder: Path) -> list[float]:
    """When trials ended, seconds."""
    (events,) = folder.glob("runs/*/events.jsonl")
    rows = map(json.loads, events.read_text().splitlines())
    return [
        datetime.fromisoformat(row["at"]).timestamp()
        for row in rows
        if row["event"] == "TrialFinished"
    ]
