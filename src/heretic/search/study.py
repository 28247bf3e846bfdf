"""The search loop: propose, evaluate, learn. It can be resumed however it ended."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from heretic.errors import StudyError
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
from heretic.records.trial import Optimization, Score, Trial, front_with
from heretic.records.trial import front as front_of
from heretic.records.volume import is_stagnant
from heretic.runs.folder import RunFolder
from heretic.search import agenda
from heretic.search.bounds import bound_warnings
from heretic.search.limits import BetweenBatches, TimeLimit
from heretic.search.pool import Pool
from heretic.search.space import Space
from heretic.search.trying import Evaluate, tried

if TYPE_CHECKING:
    from heretic.search.sampler import SamplerKind

MAX_FAILURES = 10
"""This many failed trials in a row end the search: the plans are then not the cause."""


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
        evaluate: Evaluate | Pool,
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
        interrupted. Its plan is tried again, unless it was proposed for a pool.

        Args:
            evaluate: Returns the scores of plans, each in the order of `objectives`; or a pool that
                takes plans and gives their trials back. Trials that are in a pool when the search
                ends by an error or Ctrl+C are kept as interrupted.
            n_trials: Number of complete trials, including those of earlier calls and processes.
            baseline: Scores of the unedited model, for the display.
            start_plans_only: End once the start plans are done, even if `n_trials` is not reached.
            to_the_end: Go on even if the front has stopped growing.
            time_limit: Once a trial is complete, begin no more trials that would end after it, if
                they take as long as those of this call on average; in a pool, without what a plan
                waits for a worker.
            between_batches: Its time counts for no limit and no estimate.

        Returns:
            All finished trials.

        Raises:
            StudyError: Ten trials in a row failed, or a pool has nobody left who scores plans.
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
        evaluate: Evaluate | Pool,
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
        self._pending: dict[int, Plan] = {}  # in the pool
        self._failures = 0
        self.trials: list[Trial] = []
        self.front: list[Trial] = []
        self.completed = 0
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
        self.completed = _completed(self.trials)
        self._all_started = False
        self._pending = {}
        folder.write_front(self.front)

    def loop(self) -> None:
        """Run trials until there are enough, time is over, or the front has stopped growing.

        Raises:
            StudyError: Ten trials in a row failed.
        """
        try:
            while (room := self._room()) or self._pending:
                self._step(room)
        except BaseException:
            # Ctrl+C may have come between any two lines, so the state in memory is not
            # reliable: read it all again, which also closes open trials.
            self._open()
            raise

    def _room(self) -> int:
        """How many trials may begin now."""
        room = self._places()
        if self._is_out_of_time or room <= 0 or self.is_stagnant():
            return 0
        if self._start_plans_only and not self._waiting_start_plans():
            return 0
        if not self._give_way():
            return 0
        self._is_out_of_time = self._no_time_for_another()
        return 0 if self._is_out_of_time else room

    def _places(self) -> int:
        """How many trials could begin now, as far as they are wanted and somebody has time."""
        wanted = self._n_trials - self.completed - len(self._pending)
        if callable(self._evaluate):
            return min(self._study.plans_at_once, wanted)
        if self._evaluate.in_batches and self._pending:
            return 0
        # Where nobody is left there is room for one, and taking it says so.
        return min(max(1, self._evaluate.places) - len(self._pending), wanted)

    def _give_way(self) -> bool:
        """Let others have the model, in time that is none of the search's; whether it goes on."""
        if self._between_batches is None:
            return True
        start = perf_counter()
        goes_on = self._between_batches(not self._pending)
        away = perf_counter() - start
        self._start += away
        if self._time_limit is not None:
            self._time_limit = self._time_limit.later(away)
        return goes_on

    def _no_time_for_another(self) -> bool:
        """Whether a batch would end after the time limit; never before a trial is complete."""
        if self._time_limit is None or not self._spent:
            return False
        if callable(self._evaluate):
            seconds = sum(self._batches) / len(self._batches)
        else:
            seconds = self._evaluate.at_once * sum(self._spent) / len(self._spent)
        return seconds > self._time_limit.left()

    def why_ended(self) -> str:
        """Why `loop` returned: `time`, `stagnant` or `done`."""
        if self._is_out_of_time and self.completed < self._n_trials:
            return "time"
        return "stagnant" if self.is_stagnant() else "done"

    def is_stagnant(self) -> bool:
        """Whether the search ends early, since the front has not grown for `patience` trials."""
        if self.completed >= self._n_trials:
            return False
        # Start plans were asked for explicitly, so they are evaluated in any case.
        waiting = self._waiting_start_plans()
        return not waiting and is_stagnant(self.trials, self._patience)

    def _step(self, room: int) -> None:
        """Evaluate a batch; or hand plans to the pool, if any may begin, and wait for trials."""
        if callable(self._evaluate):
            start = perf_counter()
            batch = self._next(room)
            self._tell_of(batch)
            for trial, error in tried(self._evaluate, self._study.objectives, batch):
                self._take_in(trial, error)
            self._batches.append(perf_counter() - start)
            return
        if room:
            self._hand_in(self._evaluate, room)
        for trial in sorted(self._evaluate.take(), key=lambda trial: trial.number):
            del self._pending[trial.number]
            self._take_in(trial, None)

    def _tell_of(self, batch: Sequence[tuple[int, Plan]]) -> None:
        for number, _ in batch:
            self._reporter.emit(TrialStarted(number, self.completed, self._n_trials))

    def _hand_in(self, pool: Pool, room: int) -> None:
        """Propose plans for a pool; start plans make a batch of their own, as in one process."""
        while room > 0:
            # Those that are proposed one after the other are handed in at once: somebody waits.
            together = room if pool.in_batches else agenda.proposed_together(pool.places)
            batch = self._next(min(room, together))
            self._pending |= dict(batch)
            self._tell_of(batch)
            pool.hand_in(batch)
            room -= len(batch)
            if pool.in_batches or (self._start_plans_only and not self._waiting_start_plans()):
                return

    def _take_in(self, trial: Trial, error: Exception | None) -> None:
        """Keep a finished trial.

        Raises:
            StudyError: It is the tenth trial in a row that failed.
        """
        self._sampler.learn(trial)
        insort(self.trials, trial, key=lambda one: one.number)
        front = front_with(self.front, trial)
        if front is not self.front:
            self.front = front
            self._study.folder.write_front(front)
        if trial.state == "complete":
            self.completed += 1
            self._spent.append(trial.seconds)
        self._report(trial)
        self._failures = 0 if trial.state == "complete" else self._failures + 1
        if self._failures >= MAX_FAILURES:
            raise StudyError(
                f"{MAX_FAILURES} trials in a row failed, the last one with: {trial.failure}",
                remedy=f"Details are in {self._study.folder.log_path}; the run can be resumed.",
            ) from error

    def _waiting_start_plans(self) -> list[Plan]:
        if self._all_started:
            return []
        waiting = agenda.waiting_start_plans(
            self._study.start_plans, self.trials, self._pending.values(), self._in_pool
        )
        self._all_started = not waiting
        return waiting

    def _next(self, count: int) -> list[tuple[int, Plan]]:
        """Numbers and plans of the next trials: start plans first, then the sampler's."""
        waiting = self._waiting_start_plans()
        if waiting:
            # After an interruption plans run alone, which shows which of them kills the process.
            cut_short = agenda.interruptions(self.trials)
            if not self._in_pool and any(cut_short[plan] for plan in waiting):
                count = 1
            return [(self._sampler.adopt(plan), plan) for plan in waiting[:count]]
        stock = 1
        if callable(self._evaluate) or self._evaluate.in_batches:
            first, salt = agenda.next_seed(self.trials, self._sampler.ordinals())
        else:  # counts of ended trials repeat themselves while others are pending
            first, salt = self._sampler.next_number, 0
            stock = agenda.proposed_together(self._evaluate.places)
        propose = partial(self._sampler.propose, salt=salt, keep=self._in_pool, stock=stock)
        return [propose(first + i) for i in range(count)]

    @property
    def _in_pool(self) -> bool:
        return not callable(self._evaluate)

    def report_start(self, baseline: tuple[Score, ...]) -> None:
        self._reporter.emit(SearchStarted(self.completed, self._n_trials, baseline))

    def report_end(self, reason: str) -> None:
        limit = self._time_limit if reason == "time" else None
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
        if not callable(self._evaluate):
            # A trial's seconds are its share of those in which a worker had several.
            seconds /= max(1, self._evaluate.places // self._evaluate.at_once)
        if self._time_limit is not None:
            seconds = max(0.0, min(seconds, self._time_limit.left()))
        return seconds


def _completed(trials: Sequence[Trial]) -> int:
    return sum(trial.state == "complete" for trial in trials)
