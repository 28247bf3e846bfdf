"""The search loop: propose, evaluate, learn. It can be resumed however it ended."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from heretic.errors import StudyError, is_of_interruption
from heretic.events import (
    Notice,
    Reporter,
    SearchFinished,
    SearchStarted,
    Silent,
    TrialFinished,
    TrialStarted,
)
from heretic.records.plan import Plan
from heretic.records.trial import Optimization, Score, Trial
from heretic.records.trial import front as front_of
from heretic.records.volume import is_stagnant
from heretic.runs.folder import RunFolder
from heretic.runs.journal import INTERRUPTED
from heretic.search.bounds import bound_warnings
from heretic.search.limits import BetweenBatches, TimeLimit
from heretic.search.space import Space
from heretic.system.display import safe_line

if TYPE_CHECKING:
    from heretic.search.sampler import SamplerKind

Evaluate = Callable[[Sequence[Plan]], Sequence[tuple[Score, ...]]]
"""Evaluates plans together and returns the scores of each."""

MAX_INTERRUPTIONS = 3
"""A start plan that was interrupted this often is skipped: it may be what kills the process."""

MAX_FAILURES = 10
"""This many failed trials in a row end the search: the plans are then not the cause."""

_REASON_LENGTH = 300
_log = logging.getLogger(__name__)


class Study:
    """A search whose state is kept in a run folder.

    Args:
        folder: The run's folder.
        space: The search space.
        objectives: How each score is optimised, in the order of the scores.
        seed: Determines all proposals, together with the scores.
        n_startup_trials: Random trials before the sampler learns.
        start_plans: Plans to evaluate first, unless the run has done so. The sampler does not
            learn from those outside `space`.
        sampler: Name of the sampler that proposes plans.
        plans_at_once: Number of plans that are proposed and evaluated together.
        patience: Complete trials without a better front after which the search ends; 0 for never.
        aim: Bound of the first objective, within which the best second one is searched for; None
            searches the whole front.

    Raises:
        StudyError: No score is minimised or maximised.
    """

    def __init__(
        self,
        folder: RunFolder,
        space: Space,
        *,
        objectives: Sequence[Optimization],
        seed: int,
        n_startup_trials: int = 60,
        start_plans: Sequence[Plan] = (),
        sampler: SamplerKind = "tpe",
        plans_at_once: int = 1,
        patience: int = 0,
        aim: float | None = None,
    ) -> None:
        if all(objective == "none" for objective in objectives):
            raise StudyError(
                "There is nothing to search for: no scorer has the optimization minimize or "
                "maximize.",
                remedy="Set optimization for a scorer in the setting scorers.",
            )
        self.folder = folder
        self.space = space
        self.objectives = tuple(objectives)
        self.seed = seed
        self.n_startup_trials = n_startup_trials
        self.start_plans = tuple(start_plans)
        self.sampler: SamplerKind = sampler
        self.plans_at_once = plans_at_once
        self.patience = patience
        self.aim = aim
        self._search: _Search | None = None  # while `run` is on its way

    @property
    def trials(self) -> list[Trial]:
        """All finished trials, also failed and interrupted ones, by number; there may be gaps.

        Raises:
            RunError: The journal is damaged, or written by a newer release.
        """
        return self.folder.read_trials() if self._search is None else list(self._search.trials)

    @property
    def front(self) -> list[Trial]:
        """The trials that no other dominates, as shown to the user."""
        return front_of(self.trials) if self._search is None else list(self._search.front)

    @property
    def completed(self) -> int:
        """How many trials have scores."""
        return _completed(self.trials)

    def run(
        self,
        evaluate: Evaluate,
        n_trials: int,
        reporter: Reporter | None = None,
        *,
        baseline: tuple[Score, ...] = (),
        start_plans_only: bool = False,
        to_the_end: bool = False,
        time_limit: TimeLimit | None = None,
        between_batches: BetweenBatches | None = None,
    ) -> list[Trial]:
        """Search until `n_trials` trials of the run are complete.

        Each finished trial is written to the journal and `front.json`. A trial that raises an error
        is kept as failed, with the reason. A trial that is stopped from outside (Ctrl+C) is kept as
        interrupted, and its plan is tried again.

        Args:
            evaluate: Returns the scores of plans, each in the order of `objectives`.
            n_trials: Number of complete trials, including those of earlier calls and processes.
            baseline: Scores of the unedited model, for the display.
            start_plans_only: End once the start plans are done, even if `n_trials` is not reached.
            to_the_end: Go on even if the front has stopped growing.
            time_limit: Once a trial is complete, begin no more trials that would end after it, if
                they take as long as those of this call on average.
            between_batches: Its time counts for no limit and no estimate.

        Returns:
            All finished trials.

        Raises:
            StudyError: Ten trials in a row failed.
            RunError: The run is locked, damaged, or cannot be written.
        """
        with self.folder.lock():
            patience = 0 if to_the_end else self.patience
            search = _Search(
                self,
                evaluate,
                n_trials,
                reporter or Silent(),
                start_plans_only,
                patience,
                time_limit,
                between_batches,
            )
            search.report_start(baseline)
            self._search = search
            reason = "failed"
            try:
                search.loop()
                reason = search.why_ended()
            except KeyboardInterrupt:
                reason = "interrupted"
                raise
            finally:
                self._search = None
                search.report_end(reason)
                self.folder.mark_journal()
            search.warn_of_bounds()
            return search.trials


class _Search:
    """One call of `Study.run`."""

    def __init__(
        self,
        study: Study,
        evaluate: Evaluate,
        n_trials: int,
        reporter: Reporter,
        start_plans_only: bool,
        patience: int,
        time_limit: TimeLimit | None,
        between_batches: BetweenBatches | None,
    ) -> None:
        self._between_batches = between_batches
        self._study = study
        self._start_plans_only = start_plans_only
        self._patience = patience
        self._time_limit = time_limit
        self._is_out_of_time = False
        self._evaluate = evaluate
        self._n_trials = n_trials
        self._reporter = reporter
        self._start = perf_counter()
        self._spent: list[float] = []  # seconds of each trial that this call completed
        self._batches: list[float] = []  # seconds of each batch, with the proposals
        self._failures = 0
        self.trials: list[Trial] = []
        self.front: list[Trial] = []
        self._all_started = False  # whether no start plan is left
        self._open()
        if start_plans_only:
            self._n_trials = min(n_trials, self.completed + len(self._waiting_start_plans()))

    def _open(self) -> None:
        """Read the run from disk, closing trials that were left open."""
        from heretic.search.sampler import OptunaStudy

        study, folder = self._study, self._study.folder
        folder.tidy()
        lost = folder.mend()
        if lost:
            self._reporter.emit(Notice(lost, level="warning"))
        folder.read_trials()  # a record of a newer release is refused before anything is written
        self._sampler = OptunaStudy(
            folder.open_journal(),
            study.space,
            study.objectives,
            study.seed,
            study.n_startup_trials,
            study.sampler,
            study.aim,
        )
        self._sampler.settle()
        self.trials = folder.read_trials()
        self.front = front_of(self.trials)
        self._all_started = False
        folder.write_front(self.front)

    @property
    def completed(self) -> int:
        return _completed(self.trials)

    def loop(self) -> None:
        """Run trials until there are enough, time is over, or the front has stopped growing.

        Raises:
            StudyError: Ten trials in a row failed.
        """
        while self.completed < self._n_trials and not self.is_stagnant():
            if self._start_plans_only and not self._waiting_start_plans():
                return
            self._give_way()
            if self._no_time_for_another():
                self._is_out_of_time = True
                return
            start = perf_counter()
            try:
                self._step()
            except BaseException:
                # Ctrl+C may have come between any two lines, so the state in memory is not
                # reliable: read it all again, which also closes the open trial.
                self._open()
                raise
            self._batches.append(perf_counter() - start)

    def _give_way(self) -> None:
        """Let others have the model before the next batch; their time is none of the search's."""
        if self._between_batches is None:
            return
        start = perf_counter()
        self._between_batches()
        away = perf_counter() - start
        self._start += away
        if self._time_limit is not None:
            self._time_limit = self._time_limit.later(away)

    def _no_time_for_another(self) -> bool:
        """Whether a batch would end after the time limit; never before a trial is complete."""
        if self._time_limit is None or not self._spent:
            return False
        return sum(self._batches) / len(self._batches) > self._time_limit.left()

    def why_ended(self) -> str:
        """Why `loop` returned: `time`, `stagnant` or `done`."""
        if self._is_out_of_time:
            return "time"
        return "stagnant" if self.is_stagnant() else "done"

    def is_stagnant(self) -> bool:
        """Whether the search ends early, since the front has not grown for `patience` trials."""
        if self.completed >= self._n_trials:
            return False
        # Start plans were asked for explicitly, so they are evaluated in any case.
        waiting = self._waiting_start_plans()
        return not waiting and is_stagnant(self.trials, self._patience)

    def _step(self) -> None:
        batch = self._next(min(self._study.plans_at_once, self._n_trials - self.completed))
        for number, _ in batch:
            self._reporter.emit(TrialStarted(number, self.completed, self._n_trials))
        for trial, error in self._try(batch):
            self._take_in(trial, error)

    def _take_in(self, trial: Trial, error: Exception | None) -> None:
        """Keep a finished trial.

        Raises:
            StudyError: It is the tenth trial in a row that failed.
        """
        self._sampler.learn(trial)
        self.trials.append(trial)
        self.front = front_of([*self.front, trial])
        self._study.folder.write_front(self.front)
        if error is None:
            self._spent.append(trial.seconds)
        self._report(trial)
        self._failures = 0 if error is None else self._failures + 1
        if self._failures >= MAX_FAILURES:
            raise StudyError(
                f"{MAX_FAILURES} trials in a row failed, the last one with: {trial.failure}",
                remedy=f"Details are in {self._study.folder.log_path}; the run can be resumed.",
            ) from error

    def _waiting_start_plans(self) -> list[Plan]:
        if self._all_started:
            return []
        done = {trial.plan for trial in self.trials if trial.failure != INTERRUPTED}
        cut_short = self._interruptions()
        waiting = [
            plan
            for plan in dict.fromkeys(self._study.start_plans)
            if plan not in done and cut_short[plan] < MAX_INTERRUPTIONS
        ]
        self._all_started = not waiting
        return waiting

    def _interruptions(self) -> Counter[Plan]:
        return Counter(trial.plan for trial in self.trials if trial.failure == INTERRUPTED)

    def _next(self, count: int) -> list[tuple[int, Plan]]:
        """Numbers and plans of the next trials: start plans first, then the sampler's."""
        waiting = self._waiting_start_plans()
        if waiting:
            # After an interruption plans run alone, which shows which of them kills the process.
            cut_short = self._interruptions()
            batch = waiting[:count] if not any(cut_short[plan] for plan in waiting) else waiting[:1]
            return [(self._sampler.adopt(plan), plan) for plan in batch]
        ended = [trial for trial in self.trials if trial.failure != INTERRUPTED]
        last = ended[-1].number if ended else -1
        interrupted = Counter(trial.plan for trial in self.trials if trial.number > last)
        # A plan is tried again after one interruption; after two it may be what kills the process.
        salt = max([1, *interrupted.values()]) - 1
        return [self._sampler.propose(len(ended) + i, salt) for i in range(count)]

    def _try(self, batch: Sequence[tuple[int, Plan]]) -> Iterator[tuple[Trial, Exception | None]]:
        """Evaluate plans together; if that fails, one by one, so that only faulty plans fail."""
        start = perf_counter()
        try:
            pairs = list(zip(batch, self._evaluate([plan for _, plan in batch]), strict=True))
        except Exception as error:  # one bad trial must not end a search of hours
            if is_of_interruption(error):
                raise
            if len(batch) == 1:
                yield _failed(*batch[0], error, perf_counter() - start), error
                return
            _log.info("A batch of %d failed and is evaluated one by one", len(batch), exc_info=True)
            for one in batch:
                yield from self._try([one])
            return
        seconds = (perf_counter() - start) / len(batch)
        for (number, plan), scores in pairs:
            try:
                self._check(scores)
            except ValueError as error:  # the other plans' scores are still valid
                yield _failed(number, plan, error, seconds), error
            else:
                yield Trial(number, plan, tuple(scores), seconds=seconds), None

    def _check(self, scores: tuple[Score, ...]) -> None:
        searched, found = (
            [choice for choice in choices if choice != "none"]
            for choices in (self._study.objectives, [score.optimization for score in scores])
        )
        if searched != found:
            raise ValueError(f"the scores do not match the objectives: {scores}")
        for score in scores:
            if not score.is_sound:
                raise ValueError(f"score {score.name} is {score.value}")

    def report_start(self, baseline: tuple[Score, ...]) -> None:
        self._reporter.emit(SearchStarted(self.completed, self._n_trials, baseline))

    def report_end(self, reason: str) -> None:
        limit = self._time_limit if self._is_out_of_time else None
        self._reporter.emit(
            SearchFinished(
                reason,
                self.completed,
                perf_counter() - self._start,
                self._n_trials,
                None if limit is None else limit.seconds,
            )
        )

    def warn_of_bounds(self) -> None:
        params = self._sampler.params_of(trial.number for trial in self.front)
        for text in bound_warnings(self._study.space, params):
            self._reporter.emit(Notice(text, level="warning"))

    def _report(self, trial: Trial) -> None:
        self._reporter.emit(
            TrialFinished(
                trial=trial,
                front=self.front,
                completed=self.completed,
                n_trials=self._n_trials,
                elapsed=perf_counter() - self._start,
                remaining=self._remaining(),
            )
        )

    def _remaining(self) -> float | None:
        """Seconds that the search will still take, as far as the trials of this call tell."""
        if not self._spent:
            return None
        left = max(0, self._n_trials - self.completed)
        seconds = left * sum(self._spent) / len(self._spent)
        if self._time_limit is not None:
            seconds = max(0.0, min(seconds, self._time_limit.left()))
        return seconds


def _completed(trials: Sequence[Trial]) -> int:
    return sum(trial.state == "complete" for trial in trials)


def _failed(number: int, plan: Plan, error: Exception, seconds: float) -> Trial:
    """A trial that failed; the log gets the traceback."""
    _log.warning("Trial %d failed", number, exc_info=error)
    return Trial(number, plan, (), "failed", _reason(error), seconds)


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = safe_line(str(error)) or "no message"
    return f"{type(error).__name__}: {text}"[:_REASON_LENGTH]
