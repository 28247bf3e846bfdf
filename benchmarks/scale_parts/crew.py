"""Workers that take no time, by a clock that also counts what the driver needs."""

from __future__ import annotations

import heapq
import itertools
from time import process_time

import numpy as np
from benchmarks.scale_parts.surrogate import Surrogate

from heretic.cluster.crew import Batch, Done, Lost, Message, Ready, Rivals
from heretic.records.trial import Trial

SCATTER = 0.2
"""Standard deviation of the logarithm of a trial's time."""

SLOW, SLOWER = 0.005, 8.0
"""Share of trials that take longer, and how many times as long."""

LOST = 0.001
"""Share of trials in which the worker ends."""

LOADING = 60.0
"""Seconds until a worker is ready."""


class SimulatedCrew:
    """A `heretic.cluster.crew.Crew` whose workers score by the surrogate.

    Its clock goes on by the driver's processor time, and jumps to the next message where the driver
    waits. So a driver that is too slow leaves workers idle here as it would with real ones.

    Args:
        median: Median of a trial's time, seconds.

    Attributes:
        begun: Clock when the last task was first sent, seconds; tasks that take too long are sent
            to a second worker.
        scoring: Seconds of processor time that the surrogate took.
        losses: How often a worker ended.
        idle: For each task but a worker's first, seconds that the worker had waited for it.
    """

    def __init__(self, median: float, seed: int, surrogate: Surrogate) -> None:
        self.begun = 0.0
        self._newest = -1
        self._busy: list[tuple[float, float]] = []  # begin and end of each task
        self.losses = 0
        self.scoring = 0.0
        self.idle: list[float] = []
        self._median = median
        self._rng = np.random.default_rng(seed)
        self._surrogate = surrogate
        self._ahead = -process_time()
        self._order = itertools.count()
        self._coming: list[tuple[float, int, int, Message]] = []
        self._lives: dict[int, int] = {}
        self._ended: dict[int, float] = {}

    def start(self, worker: int) -> None:
        """Start a worker."""
        self.stop(worker)
        self._later(LOADING, Ready(worker, "here"))

    def stop(self, worker: int) -> None:
        """End a worker."""
        self._lives[worker] = self._lives.get(worker, 0) + 1
        self._ended.pop(worker, None)

    def send(self, worker: int, task: int, batch: Batch, rivals: Rivals) -> None:
        """Let a worker score plans; now and then it takes long, or ends."""
        if worker in self._ended:
            self.idle.append(self.now() - self._ended[worker])
        seconds = self._median * float(np.exp(self._rng.normal(0.0, SCATTER))) * len(batch)
        if self._rng.random() < SLOW:
            seconds *= SLOWER
        now = self.now()
        self._busy.append((now, now + seconds))
        if task > self._newest:
            self._newest, self.begun = task, now
        if self._rng.random() < LOST:
            self.losses += 1
            self._later(seconds, Lost(worker, "it ended"))
            return
        begin = process_time()
        trials = [
            Trial(number, plan, self._surrogate(plan), seconds=seconds / len(batch))
            for number, plan in batch
        ]
        spent = process_time() - begin  # real workers do this elsewhere
        self.scoring += spent
        self._ahead -= spent
        self._later(seconds, Done(worker, task, trials))

    def tell(self, worker: int, rivals: Rivals) -> None:
        """Nothing: no evaluation ends early here."""

    def wait(self, seconds: float) -> list[Message]:
        """The messages that have come; the clock jumps to the first if none has."""
        end = self.now() + seconds
        if self._coming and self.now() < self._coming[0][0] <= end:
            self._ahead += self._coming[0][0] - self.now()
        found = []
        while self._coming and self._coming[0][0] <= self.now():
            at, _, life, message = heapq.heappop(self._coming)
            if self._lives[message.worker] == life:
                self._ended[message.worker] = at
                found.append(message)
        if not found and self.now() < end:
            self._ahead += end - self.now()
        return found

    def busy(self) -> float:
        """Mean number of workers at work from when they were ready until the last plan went out."""
        until = [max(0.0, min(end, self.begun) - begin) for begin, end in self._busy]
        return sum(until) / (self.begun - LOADING)

    def now(self) -> float:
        """Seconds since the start."""
        return process_time() + self._ahead

    def _later(self, seconds: float, message: Message) -> None:
        life = self._lives[message.worker]
        heapq.heappush(self._coming, (self.now() + seconds, next(self._order), life, message))
