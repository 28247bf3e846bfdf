"""How long the trials of a search take, and what that leaves of its time."""

from __future__ import annotations

from time import perf_counter

from heretic.search.limits import BetweenBatches, TimeLimit


class Pace:
    """The times of one call of a search.

    Args:
        limit: Once a trial is complete, no more trials begin that would end after it.
        between_batches: Who else may have the model, in time that counts for nothing.
    """

    def __init__(
        self, limit: TimeLimit | None, between_batches: BetweenBatches | None = None
    ) -> None:
        self.limit = limit
        self._between_batches = between_batches
        self._start = perf_counter()
        self._spent: list[float] = []  # seconds of each trial that this call completed
        self._batches: list[float] = []  # seconds of each batch, with the proposals

    @property
    def elapsed(self) -> float:
        """Seconds since the search began, less those in which others had the model."""
        return perf_counter() - self._start

    def give_way(self, may_hold: bool) -> bool:
        """Let others have the model; whether the search goes on. See `BetweenBatches`."""
        if self._between_batches is None:
            return True
        start = perf_counter()
        goes_on = self._between_batches(may_hold)
        self._leave_out(perf_counter() - start)
        return goes_on

    def _leave_out(self, seconds: float) -> None:
        """Count some time for nothing."""
        self._start += seconds
        if self.limit is not None:
            self.limit = self.limit.later(seconds)

    def add_batch(self, seconds: float) -> None:
        """Keep how long a batch of plans took in this process."""
        self._batches.append(seconds)

    def add_trial(self, seconds: float) -> None:
        """Keep how long a complete trial took."""
        self._spent.append(seconds)

    def is_over(self) -> bool:
        """Whether the limit has passed."""
        return self.limit is not None and self.limit.left() <= 0

    def is_too_late(self, at_once: int | None) -> bool:
        """Whether what begins now would end after the limit; never before a trial is complete.

        Args:
            at_once: Plans that a worker has together; None where this process evaluates them.
        """
        if self.limit is None or not self._spent:
            return False
        if at_once is None:
            seconds = sum(self._batches) / len(self._batches)
        else:
            seconds = at_once * sum(self._spent) / len(self._spent)
        return seconds > self.limit.left()

    def remaining(self, trials: int, side_by_side: int) -> float | None:
        """Seconds that some trials will take, as far as those of this call tell.

        Args:
            side_by_side: How many of them are evaluated at a time.
        """
        if not self._spent:
            return None
        seconds = trials * sum(self._spent) / len(self._spent) / max(1, side_by_side)
        if self.limit is not None:
            seconds = max(0.0, min(seconds, self.limit.left()))
        return seconds
