"""A whole search by the command line, timed from the start of the command, and its stages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from benchmarks.gpu_parts.planted import planted
from benchmarks.gpu_parts.records import Row
from benchmarks.gpu_parts.sizes import Job
from benchmarks.peer.processes import environment
from benchmarks.peer.records import SETS

from heretic.demo.data import prompt_file

SPARE = 10.0
"""Seconds of the section that the command's own time limit leaves for its last trials."""

BEGINS = re.compile(r"(?P<title>.*\S) \.\.\.")
"""A line with which the command begins a stage."""

SEARCH, TRIAL = "Search: ", re.compile(r"trial \d+: (?P<scores>.*?);")
ENDED = re.compile(r"(Search|Search ended, .*|Time limit of .* reached): \d+ ?.* trials")
IMPORTS = "imports, settings"
TRIALS = "trials"


def measure(job: Job) -> None:
    """`auto` on the planted model, with default settings but for prompts, lengths and trials.

    The command is ended once it tells that its search is over: what it does with the chosen trial
    is not measured.
    """
    model, name = planted(job)
    work = job.work / "search"
    work.mkdir(parents=True, exist_ok=True)
    log = Watched(name, job.size.trials)
    start = time.perf_counter()
    with _running(_command(job, model, work), work) as output:
        for line in output:
            print(line, end="", file=sys.stderr, flush=True)
            for table, row in log.take(line.rstrip("\n"), time.perf_counter() - start):
                job.emit(table, row)
            if log.is_over:
                return
    text = f"{name}: the command ended before its search did; the log has its output."
    job.note(text)
    raise SystemExit(text)


class Watched:
    """Makes rows of the lines that the command prints.

    Args:
        model: What tables call it.
        wanted: Trials asked for.
    """

    def __init__(self, model: str, wanted: int) -> None:
        self.is_over = False
        self._model, self._wanted = model, wanted
        self._stage: tuple[str, float] = (IMPORTS, 0.0)
        self._trials = 0
        self._first = 0.0

    def take(self, line: str, at: float) -> Iterator[tuple[str, Row]]:
        """Rows that a line completes; each with its table.

        Args:
            at: Seconds since the command's start.
        """
        stage = BEGINS.fullmatch(line)
        if stage is not None:
            yield self._next(_short(stage["title"]), at)
        elif line.startswith(SEARCH) and self._stage[0] != TRIALS:
            yield self._next(TRIALS, at)
        elif ENDED.match(line):
            self.is_over = True
            yield self._next("", at)
            yield "search", self._row(at, line)
        elif TRIAL.match(line):
            self._trials += 1
            self._first = self._first or at
            yield "search", self._row(at, "")

    def _next(self, stage: str, at: float) -> tuple[str, Row]:
        name, begun = self._stage
        self._stage = stage, at
        return "startup", {
            "model": self._model,
            "stage": name,
            "begins": begun,
            "seconds": at - begun,
        }

    def _row(self, at: float, ended: str) -> Row:
        return {
            "model": self._model,
            "trials": self._trials,
            "wanted": self._wanted,
            "first_trial": self._first,
            "seconds": at,
            "ended": ended,
        }


def _short(title: str) -> str:
    """The title of a stage, without the model's folder."""
    return "Loading the model" if title.startswith("Loading /") else title


def _command(job: Job, model: Path, work: Path) -> Sequence[str]:
    values: dict[str, object] = {
        "search": "auto",
        "seed": 1,
        "dtypes": '["bfloat16"]',
        "n-trials": job.size.trials,
        "max-response-length": min(job.size.cells["135m"].lengths),
        "study-checkpoint-dir": work / "runs",
        "model-action": "none",
        "time-limit": f"{max(1, round(job.left() - SPARE))}s",
    }
    for setting, name in SETS.items():
        option = setting.replace("_", "-")
        values[f"{option}.dataset"] = prompt_file(name)
        values[f"{option}.split"] = f"train[:{job.size.prompts}]"
    command = [sys.executable, "-m", "heretic", str(model)]
    return [*command, *(f"--{name}={value}" for name, value in values.items())]


@contextmanager
def _running(command: Sequence[str], work: Path) -> Iterator[IO[str]]:
    """The output of a command, line by line; the command ends with the context."""
    path = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    with subprocess.Popen(
        command,
        cwd=work,
        env={**environment(), **path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()
