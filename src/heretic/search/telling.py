"""What a search tells its reporter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from heretic.events import (
    Notice,
    Reporter,
    SearchFinished,
    SearchStarted,
    TrialFinished,
    TrialStarted,
)
from heretic.records.trial import Score, Trial
from heretic.search.pace import Pace


class Teller:
    """The events of one call of a search."""

    def __init__(self, reporter: Reporter, pace: Pace) -> None:
        self._reporter = reporter
        self._pace = pace

    def warn(self, texts: Iterable[str]) -> None:
        """Tell what may be wrong."""
        for text in texts:
            self._reporter.emit(Notice(text, level="warning"))

    def of_start(self, completed: int, n_trials: int, baseline: tuple[Score, ...]) -> None:
        """Tell that the search begins."""
        self._reporter.emit(SearchStarted(completed, n_trials, baseline))

    def of_plans(self, numbers: Iterable[int], completed: int, n_trials: int) -> None:
        """Tell of trials whose plans are now evaluated here."""
        for number in numbers:
            self._reporter.emit(TrialStarted(number, completed, n_trials))

    def of_trial(
        self,
        trial: Trial,
        front: Sequence[Trial],
        completed: int,
        n_trials: int,
        side_by_side: int,
    ) -> None:
        """Tell of a trial that has ended, and how long the rest will take."""
        left = max(0, n_trials - completed)
        self._reporter.emit(
            TrialFinished(
                trial=trial,
                front=front,
                completed=completed,
                n_trials=n_trials,
                elapsed=self._pace.elapsed,
                remaining=self._pace.remaining(left, side_by_side),
            )
        )

    def of_end(self, reason: str, completed: int, n_trials: int) -> None:
        """Tell why the search has ended."""
        limit = self._pace.limit if reason == "time" else None
        seconds = None if limit is None else limit.seconds
        self._reporter.emit(
            SearchFinished(reason, completed, self._pace.elapsed, n_trials, seconds)
        )
