"""Workers without processes: a clock that jumps to the next event, and faults on demand."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

from heretic.cluster.crew import Batch, Done, Lost, Message, Ready, Rivals, Unfit
from heretic.records import Plan, Trial
from tests.support.search_case import measure

LOADING = 5.0
"""Seconds until a worker is ready."""


class ClockCrew:
    """A crew whose workers score as `search_case` does.

    Attributes:
        seconds: How long a worker takes for a plan; infinite for never.
        deadly: Plans that end whoever scores them.
        broken: Workers on which every plan fails.
        unfit: Workers whose node has something else.
        sent: Worker and numbers of the trials of each task.
        told: Rivals that were handed on, by worker.
    """

    def __init__(self, seconds: Callable[[int, Plan], float] = lambda *_: 1.0) -> None:
        self.seconds = seconds
        self.deadly: set[Plan] = set()
        self.broken: set[int] = set()
        self.unfit: set[int] = set()
        self.sent: list[tuple[int, list[int]]] = []
        self.starts: list[int] = []
        self.told: list[tuple[int, Any]] = []
        self._time = 0.0
        self._order = itertools.count()
        self._coming: list[tuple[float, int, int, Message]] = []
        self._lives: dict[int, int] = {}

    def start(self, worker: int) -> None:
        self.stop(worker)
        self.starts.append(worker)
        answer = Unfit(worker, "it has other weights") if worker in self.unfit else None
        self._later(LOADING, worker, answer or Ready(worker, "here"))

    def stop(self, worker: int) -> None:
        self._lives[worker] = self._lives.get(worker, 0) + 1

    def kill(self, worker: int) -> None:
        """End a worker, whatever it does."""
        self.stop(worker)
        self._later(0.0, worker, Lost(worker, "killed"))

    def send(self, worker: int, task: int, batch: Batch, rivals: Rivals) -> None:
        self.sent.append((worker, [number for number, _ in batch]))
        needed = sum(self.seconds(worker, plan) for _, plan in batch)
        if self.deadly & {plan for _, plan in batch}:
            self._later(needed, worker, Lost(worker, "killed"))
        elif needed < float("inf"):
            trials = [self._trial(worker, number, plan) for number, plan in batch]
            self._later(needed, worker, Done(worker, task, trials))

    def tell(self, worker: int, rivals: Rivals) -> None:
        self.told.append((worker, rivals))

    def wait(self, seconds: float) -> list[Message]:
        end = self._time + seconds
        while self._coming and self._coming[0][0] <= end:
            at, _, life, message = heapq.heappop(self._coming)
            self._time = max(self._time, at)
            if self._lives[message.worker] == life:
                return [message]
        self._time = end
        return []

    def pass_by(self, seconds: float) -> None:
        """Let time go on while nobody listens."""
        self._time += seconds

    def now(self) -> float:
        return self._time

    def _later(self, seconds: float, worker: int, message: Message) -> None:
        event = (self._time + seconds, next(self._order), self._lives[worker], message)
        heapq.heappush(self._coming, event)

    def _trial(self, worker: int, number: int, plan: Plan) -> Trial:
        if worker in self.broken:
            return Trial(number, plan, (), "failed", "RuntimeError: it broke")
        return Trial(number, plan, measure(plan), seconds=1.0)
