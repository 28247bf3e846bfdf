"""What workers on Ray do in tests: score plans as `search_case` does, with a pause before each."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from heretic.cluster.crew import Batch, Job, Rivals, Score
from heretic.events import Event, TrialFinished
from heretic.records import Trial
from heretic.search.trying import tried
from tests.support.process_words import words_of
from tests.support.search_case import BOTH, Recorder, evaluate


@dataclass(frozen=True)
class Pause:
    """Seconds before each plan."""

    seconds: float


def prove() -> Mapping[str, str]:
    return {"model": "the same"}


def open_paused(pause: Pause) -> Score:
    def score(batch: Batch, rivals: Rivals) -> list[Trial]:
        time.sleep(pause.seconds)
        return [trial for trial, _ in tried(evaluate, BOTH, batch)]

    return score


def job(seconds: float = 0.0, proof: Mapping[str, str] | None = None) -> Job:
    return Job(prove, prove() if proof is None else proof, open_paused, Pause(seconds))


def actors_of(process: psutil.Process) -> list[psutil.Process]:
    """The processes of a driver's workers."""
    return [one for one in process.children(recursive=True) if "ray::Actor" in words_of(one)]


class Killer(Recorder):
    """A reporter that kills something at trials, by their count."""

    def __init__(self, kill: Callable[[], None], at: set[int]) -> None:
        super().__init__()
        self._kill, self._at = kill, at

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, TrialFinished) and event.completed in self._at:
            self._at = self._at - {event.completed}
            self._kill()


def kill_workers() -> None:
    """Kill this process's workers, as the system does when memory is short."""
    found = actors_of(psutil.Process())
    assert found, "there is nobody to kill"
    for one in found:
        os.kill(one.pid, signal.SIGKILL)


def origin(module: str) -> str:
    """The file of a module."""
    return str(importlib.import_module(module).__file__)


def trials_in(journal: Path) -> int:
    """How many trials a journal holds, while another process writes it."""
    return journal.read_bytes().count(b'"state":"complete"') if journal.exists() else 0
