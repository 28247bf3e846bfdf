"""Limits of a search, and what may hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

BetweenBatches = Callable[[bool], bool]
"""Called before each batch, with whether it may hold the search; returns whether the batch may
begin. What it does must leave run and model as they are. While plans are in a pool, or a number is
reserved for which other processes wait, it may not hold or end the search, and returns False where
it would: the search then begins nothing, takes what comes back, and asks again. Where it may, it
ends the search by a KeyboardInterrupt, as Ctrl+C does, and no trial is lost."""


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """How long a search may take.

    Attributes:
        seconds: From `started` to the end.
        started: When the time began, by `time.perf_counter`.
    """

    seconds: float
    started: float

    def later(self, seconds: float) -> TimeLimit:
        """The limit, so much later: for time in which the search did not work."""
        return TimeLimit(self.seconds, self.started + seconds)

    def left(self) -> float:
        """Seconds that are left; negative if it is over."""
        return self.started + self.seconds - perf_counter()
