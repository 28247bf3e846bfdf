"""The search loop: propose, evaluate, learn. It can be resumed however it ended."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from heretic.errors import StudyError
from heretic.events import Reporter, Silent
from heretic.records.plan import Plan
from heretic.records.trial import Optimization, Score, Trial, front_with
from heretic.records.trial import front as front_of
from heretic.records.volume import is_stagnant
from heretic.runs.folder import RunFolder
from heretic.runs.journal import Journal
from heretic.search import agenda
from heretic.search.bounds import bound_warnings
from heretic.search.limits import BetweenBatches, TimeLimit
from heretic.search.pace import Pace
from heretic.search.pool import Pool
from heretic.search.space import Space
from heretic.search.telling import Teller
from heretic.search.trying import Evaluate, tried

if TYPE_CHECKING:
    from heretic.search.sampler import OptunaStudy, SamplerKind
    from heretic.search.shared.remote import Remote

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

    Attributes:
        remote: The study in a storage that other processes search on too; None, as at first, if
            this one is alone. The run folder then follows it.

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
        self.remote: Remote | None = None
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
            search.tell.of_start(search.completed, search.n_trials, baseline)
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
                search.tell.of_end(reason, search.completed, search.n_trials)
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
        self._study = study
        self._start_plans_only = start_plans_only
        self._patience = patience
        self._pace = Pace(time_limit, between_batches)
        self.tell = Teller(reporter, self._pace)
        self._is_out_of_time = False
        self._evaluate = evaluate
        self.n_trials = n_trials
        self._pending: dict[int, Plan] = {}  # in the pool
        self._failures = 0
        self.trials: list[Trial] = []
        self.front: list[Trial] = []
        self.completed = 0
        self._all_started = False  # whether no start plan is left
        self._open()
        if start_plans_only:
            begun = self.completed + len(self._sampler.elsewhere())
            self.n_trials = min(n_trials, begun + len(self._waiting_start_plans()))

    def _open(self) -> None:
        """Read the run from disk, closing trials that were left open."""
        folder = self._study.folder
        folder.tidy()
        lost = folder.mend()
        if lost:
            self.tell.warn([lost])
        folder.read_trials()  # a record of a newer release is refused before anything is written
        self._sampler = self._opened(folder.open_journal())
        self._sampler.settle()
        self.trials = folder.read_trials()
        self.front = front_of(self.trials)
        self.completed = _completed(self.trials)
        self._all_started = False
        self._pending = {}
        folder.write_front(self.front)

    def _opened(self, journal: Journal) -> OptunaStudy:
        study = self._study
        args = (study.space, study.objectives, study.seed, study.n_startup_trials, study.sampler)
        if study.remote is not None:
            from heretic.search.shared.study import SharedStudy

            return SharedStudy(study.remote, journal, *args, study.aim)
        from heretic.search.sampler import OptunaStudy

        return OptunaStudy(journal, *args, study.aim)

    def loop(self) -> None:
        """Run trials until there are enough, time is over, or the front has stopped growing.

        Raises:
            StudyError: Ten trials in a row failed.
        """
        try:
            while (room := self._room()) or self._pending or self._waits():
                self._step(room)
        except BaseException:
            # Ctrl+C may have come between any two lines, so the state in memory is not
            # reliable: read it all again, which also closes open trials.
            self._sampler.hurry()
            self._open()
            raise

    def _room(self) -> int:
        """How many trials may begin now."""
        self._catch_up()
        room = self._places()
        if self._is_out_of_time or room <= 0 or self.is_stagnant():
            return 0
        if self._start_plans_only and not self._waiting_start_plans():
            return 0
        if not self._pace.give_way(not self._pending):
            return 0
        at_once = None if callable(self._evaluate) else self._evaluate.at_once
        self._is_out_of_time = self._pace.is_too_late(at_once)
        return 0 if self._is_out_of_time else room

    def _places(self) -> int:
        """How many trials could begin now, as far as they are wanted and somebody has time."""
        elsewhere = len(self._sampler.elsewhere())
        wanted = self.n_trials - self.completed - len(self._pending) - elsewhere
        if callable(self._evaluate):
            return min(self._study.plans_at_once, wanted)
        if self._evaluate.in_batches and self._pending:
            return 0
        # Where nobody is left there is room for one, and taking it says so.
        return min(max(1, self._evaluate.places) - len(self._pending), wanted)

    def _catch_up(self) -> None:
        """Take in what other processes have made of the study meanwhile."""
        self._take_in(self._sampler.news())

    def _waits(self) -> bool:
        """Whether others still evaluate plans that belong to what was asked for."""
        if self.completed >= self.n_trials or not self._sampler.elsewhere() or self.is_stagnant():
            return False
        return self._may_wait(not self._pending)

    def _may_wait(self, may_hold: bool = False) -> bool:
        """Whether it may wait for other processes: there is time, and nobody stops the search."""
        self._is_out_of_time = self._is_out_of_time or self._pace.is_over()
        return not self._is_out_of_time and self._pace.give_way(may_hold)

    def why_ended(self) -> str:
        """Why `loop` returned: `time`, `stagnant` or `done`."""
        if self._is_out_of_time and self.completed < self.n_trials:
            return "time"
        return "stagnant" if self.is_stagnant() else "done"

    def is_stagnant(self) -> bool:
        """Whether the search ends early, since the front has not grown for `patience` trials."""
        if self.completed >= self.n_trials:
            return False
        # Start plans were asked for explicitly, so they are evaluated in any case.
        waiting = self._waiting_start_plans()
        return not waiting and is_stagnant(self.trials, self._patience)

    def _step(self, room: int) -> None:
        """Evaluate a batch; or hand plans to the pool, if any may begin, and wait for trials."""
        if not room and not self._pending:
            self._sampler.pause()
        elif callable(self._evaluate):
            start = perf_counter()
            if batch := self._next(room):
                self.tell.of_plans(dict(batch), self.completed, self.n_trials)
                for trial, error in tried(self._evaluate, self._study.objectives, batch):
                    self._keep([trial], error)
                self._pace.add_batch(perf_counter() - start)
        else:
            if room:
                self._hand_in(self._evaluate, room)
            taken = self._evaluate.take() if self._pending else []
            for trial in taken:
                del self._pending[trial.number]
            self._keep(sorted(taken, key=lambda trial: trial.number), None)

    def _hand_in(self, pool: Pool, room: int) -> None:
        """Propose plans for a pool; start plans make a batch of their own, as in one process."""
        while room > 0:
            # Those that are proposed one after the other are handed in at once: somebody waits.
            together = room if pool.in_batches else agenda.proposed_together(pool.places)
            batch = self._next(min(room, together))
            if not batch:
                return
            self._pending |= dict(batch)
            self.tell.of_plans(dict(batch), self.completed, self.n_trials)
            pool.hand_in(batch)
            room -= len(batch)
            if pool.in_batches or (self._start_plans_only and not self._waiting_start_plans()):
                return

    def _take_in(self, trials: Sequence[Trial]) -> None:
        """Count and show trials that the journal holds; `front.json` comes before the events."""
        before, fronts = self.front, []
        for trial in trials:
            insort(self.trials, trial, key=lambda one: one.number)
            self.front = front_with(self.front, trial)
            fronts.append(self.front)
        if self.front is not before:
            self._study.folder.write_front(self.front)
        pool = None if callable(self._evaluate) else self._evaluate
        # A trial's seconds are its share of those in which a worker had several.
        here = 1 if pool is None else max(1, pool.places // pool.at_once)
        side_by_side = here + len(self._sampler.elsewhere())
        for trial, front in zip(trials, fronts, strict=True):
            self.completed += trial.state == "complete"
            self.tell.of_trial(trial, front, self.completed, self.n_trials, side_by_side)

    def _keep(self, trials: Sequence[Trial], error: Exception | None) -> None:
        """Keep trials that have ended here.

        Raises:
            StudyError: One is the tenth trial in a row that failed.
        """
        with self._sampler.together():
            for trial in trials:
                self._sampler.learn(trial)
        for trial in trials:
            if trial.state == "complete":
                self._pace.add_trial(trial.seconds)
        self._take_in(trials)
        for trial in trials:
            self._failures = 0 if trial.state == "complete" else self._failures + 1
            if self._failures >= MAX_FAILURES:
                raise StudyError(
                    f"{MAX_FAILURES} trials in a row failed, the last one with: {trial.failure}",
                    remedy=f"Details are in {self._study.folder.log_path}; the run can be resumed.",
                ) from error

    def _waiting_start_plans(self) -> list[Plan]:
        if self._all_started:
            return []
        pending = [*self._pending.values(), *self._sampler.elsewhere().values()]
        waiting = agenda.waiting_start_plans(
            self._study.start_plans, self.trials, pending, self._in_pool
        )
        self._all_started = not waiting and not self._sampler.elsewhere()
        return waiting

    def _next(self, count: int) -> list[tuple[int, Plan]]:
        """Numbers and plans of the next trials: start plans first, then the sampler's."""
        if self._study.remote is not None:
            return self._next_of_all(count)
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

    def _next_of_all(self, count: int) -> list[tuple[int, Plan]]:
        """As `_next`, one by one: for each it is known what all processes have begun before it."""
        found: list[tuple[int, Plan]] = []
        while len(found) < count:
            number = self._sampler.reserve()
            is_turn = self._sampler.await_turn(number, self._may_wait)
            self._catch_up()
            tried_now = {plan for _, plan in found}
            waiting = [plan for plan in self._waiting_start_plans() if plan not in tried_now]
            is_over = self._start_plans_only and not waiting
            if not is_turn or is_over or self._places() <= len(found):
                self._sampler.give_up(number)
                break
            plan = self._sampler.assign(number, waiting[0] if waiting else None)
            if plan is not None:
                found.append((number, plan))
        return found

    @property
    def _in_pool(self) -> bool:
        return not callable(self._evaluate)

    def warn_of_bounds(self) -> None:
        params = self._sampler.params_of(trial.number for trial in self.front)
        self.tell.warn(bound_warnings(self._study.space, params))


def _completed(trials: Sequence[Trial]) -> int:
    return sum(trial.state == "complete" for trial in trials)
