"""Real workers on this machine: the demo's search, timed by its events."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

SETTINGS = ["--search", "tpe", "--no-racing", "--patience", "0", "--plans-at-once", "1"]
"""All trials do the same work, whoever evaluates them."""


def local_rows(workers: Sequence[int], trials: int) -> list[dict[str, Any]]:
    """Trials a minute of the demo's search with workers, beside one process on one core."""
    if trials <= max(workers, default=1):
        raise SystemExit("Give more trials than workers: the first ones only start the clock.")
    alone, load = _rate(0, trials)
    rows = [_row("none, one core", alone, alone, load)]
    for many in workers:
        rate, load = _rate(many, trials)
        rows.append(_row(many, rate, alone, load))
    return rows


def _row(workers: int | str, rate: float, alone: float, load: float) -> dict[str, Any]:
    return {
        "workers": workers,
        "trials a minute": rate,
        "times": rate / alone,
        "first process, processor s a trial": load,
    }


def _rate(workers: int, trials: int) -> tuple[float, float]:
    """Trials a minute of one search, and the processor seconds of its first process for each.

    The first trials, one for each worker, only start the clock: models are loaded before them.
    Without workers the search is pinned to one core.
    """
    begin = max(1, workers)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "heretic", "demo", *SETTINGS]
        command += ["--n-trials", str(trials), "--workers", str(workers)]
        command += ["--study-checkpoint-dir", f"{folder}/runs"]
        command += ["--save-directory", f"{folder}/saved"]
        cores = os.sched_getaffinity(0)
        none = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=none, stdout=none) as program:
            os.sched_setaffinity(program.pid, {min(cores)} if workers == 0 else cores)
            spent: list[tuple[int, float]] = []  # trials, and processor seconds until then
            while len(ends := _ends(Path(folder))) < trials:
                if program.poll() is not None:
                    raise SystemExit("The search ended before its trials.")
                if len(ends) >= begin:
                    spent.append((len(ends), _processor_seconds(program.pid)))
                time.sleep(1.0)
            spent.append((len(ends), _processor_seconds(program.pid)))
            program.terminate()  # what comes after the search takes minutes
    (first, before), (last, after) = spent[0], spent[-1]
    rate = 60 * (len(ends) - begin) / (ends[-1] - ends[begin - 1])
    return rate, (after - before) / (last - first) if last > first else math.nan


def _processor_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _ends(folder: Path) -> list[float]:
    """When trials ended, seconds, as far as the search has come."""
    lines = [
        line
        for events in folder.glob("runs/*/events.jsonl")
        for line in events.read_text().splitlines(keepends=True)
        if '"event": "TrialFinished"' in line and line.endswith("\n")
    ]
    return [datetime.fromisoformat(json.loads(line)["at"]).timestamp() for line in lines]
