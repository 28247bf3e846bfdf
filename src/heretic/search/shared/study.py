"""The Optuna study of a run that several processes search on: the journal follows the storage.

A proposal begins with a number, which the storage gives out. It waits until every trial of a lower
number has its plan or has ended: so all that was begun before it is known, no start plan is taken
twice, and a proposal depends on its number and on what was known then.

A trial that ends here is written to the journal first, then to the storage: what is lost on the way
to the storage is told again when the run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from heretic.errors import RunError, StudyError
from heretic.records.plan import Plan
from heretic.records.trial import Optimization, Trial
from heretic.runs.journal import INTERRUPTED, TRIAL_KEY, Journal, trial_from_record
from heretic.search.sampler import ORDINAL_KEY, PLAN_KEY, OptunaStudy, sampler_seed
from heretic.search.shared.remote import OWNER_KEY, Remote, plan_of, trial_of
from heretic.search.space import Space

TURN = 0.1
"""Seconds between two looks at whose turn it is to propose."""

POLL = 1.0
"""Seconds between two looks at trials that others evaluate, where nothing else is to be done."""


class SharedStudy(OptunaStudy):
    """As `OptunaStudy`, with the trials of other processes.

    Args:
        remote: The study in the storage.
        **more: As `OptunaStudy`.
    """

    def __init__(
        self,
        remote: Remote,
        journal: Journal,
        space: Space,
        objectives: Sequence[Optimization],
        *more: Any,
        **kept: Any,
    ) -> None:
        super().__init__(journal, space, objectives, *more, **kept)
        self._remote = remote
        self._elsewhere: dict[int, Plan] = {}
        self._in_hand: set[int] = set()  # numbers of trials that are evaluated here
        self._untold: list[Trial] = []  # that the journal holds
        remote.search([choice for choice in objectives if choice != "none"])

    # --- what others do ----------------------------------------------------------------------

    def elsewhere(self) -> Mapping[int, Plan]:
        """Plans that others evaluate now, by the trial's number."""
        return self._elsewhere

    def news(self) -> list[Trial]:
        """Trials that have ended elsewhere since this was last asked; the journal holds them.

        Raises:
            StudyError: The storage does not answer, or the study is gone.
            RunError: The journal cannot be written, or a trial in the storage is malformed.
        """
        found = []
        self._elsewhere = {}
        kept = self._study.get_trials(deepcopy=False)
        length = len(kept)
        for frozen in self._remote.trials():
            number, ended = frozen.number, frozen.state.is_finished()
            if number < len(kept) and kept[number].state.is_finished():
                continue
            if number in self._in_hand:  # also if others took this process for dead: see `learn`
                continue
            if number >= length:
                if not ended and plan_of(frozen) is None:
                    self._settle_if_left(frozen)
                    break  # none behind it has a plan
                self._follow(frozen)
                length += 1
            if ended:
                found += self._closed(frozen)
            elif frozen.user_attrs.get(OWNER_KEY) != self._remote.me:
                plan = plan_of(frozen)
                if plan is not None and not self._settle_if_left(frozen):
                    self._elsewhere[number] = plan
        return found

    def _settle_if_left(self, frozen: FrozenTrial) -> bool:
        """Close a trial whose process has ended; whether it had."""
        owner = frozen.user_attrs.get(OWNER_KEY)
        left = owner != self._remote.me and self._remote.has_ended(owner)
        if left:
            self._remote.settle(frozen.number)
        return left

    def _follow(self, frozen: FrozenTrial) -> None:
        """Begin a trial of the storage in the journal too, under the same number."""
        plan = plan_of(frozen)
        if plan is None:
            self._storage.create_new_trial(self._id)
        else:
            self._put(frozen.number, plan, frozen.params, frozen.distributions)

    def _put(
        self,
        number: int,
        plan: Plan,
        params: dict[str, Any],
        distributions: dict[str, BaseDistribution],
    ) -> None:
        """Begin a trial in the journal.

        Raises:
            RunError: The journal would number it otherwise.
        """
        if self.next_number != number:
            raise self._parted(number)
        self._added(plan, params, distributions, {ORDINAL_KEY: number})

    def _closed(self, frozen: FrozenTrial) -> list[Trial]:
        """Close a trial of the journal as it ended in the storage."""
        trial = trial_of(frozen)
        if trial is None:
            self._fail(frozen.number)
            return []
        super().learn(trial)
        return [trial]

    # --- what this process does --------------------------------------------------------------

    def reserve(self) -> int:
        """Take the number of the next trial."""
        return self._remote.reserve()

    def await_turn(self, number: int, may_wait: Callable[[], bool]) -> bool:
        """Wait until all plans before a reserved trial are known, while one may; whether they are.

        A process before this one may be at its proposal for long, or hang there and be alive.
        """
        while any(self._delays(frozen) for frozen in self._remote.trials()[:number]):
            if not may_wait():
                return False
            time.sleep(TURN)
        return True

    def _delays(self, frozen: FrozenTrial) -> bool:
        if frozen.state.is_finished() or PLAN_KEY in frozen.user_attrs:
            return False
        if frozen.user_attrs.get(OWNER_KEY) == self._remote.me:  # as of a call that was broken off
            self._remote.settle(frozen.number)
        return not self._settle_if_left(frozen)

    def assign(self, number: int, plan: Plan | None) -> Plan | None:
        """Give a reserved trial its plan, in the storage and in the journal.

        Returns:
            The plan; None if others have settled the trial, as they do when this process has slept.
        """
        if plan is None:
            (trial,) = self._drawn(sampler_seed(self._seed, number), 1)
            plan = self._space.suggest(trial)
            params, distributions = trial.params, trial.distributions
        else:
            params = self._space.plan_to_params(plan) or {}
            distributions = self._distributions() if params else {}
        if not self._remote.assign(number, plan, params, distributions):
            return None
        self._put(number, plan, params, distributions)
        self._in_hand.add(number)
        return plan

    def give_up(self, number: int) -> None:
        """Let a reserved trial go without a plan."""
        self._remote.settle(number)

    def learn(self, trial: Trial) -> None:
        """Keep a finished trial in the journal; the others are told at the end of `together`."""
        super().learn(trial)
        self._in_hand.discard(trial.number)
        self._untold.append(trial)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell the others of all trials that are learned here, once they are on the disk.

        Raises:
            RunError: The journal cannot be written.
            StudyError: The storage does not answer, or the study is gone.
        """
        with super().together():
            yield
        untold, self._untold = self._untold, []
        for trial in untold:
            if not self._remote.finish(trial):
                self._tell_again(trial)

    def _tell_again(self, trial: Trial) -> None:
        """Tell the scores of a trial that others took for interrupted, as a new trial."""
        known = [trial_of(one) for one in self._remote.trials() if one.state.is_finished()]
        if any(_same(one, trial) for one in known):
            return
        self._remote.add(trial, self._frozen(trial.number))

    def settle(self) -> None:
        """Close what this process left open, in the storage and then in the journal.

        What the journal knows and the storage does not is told to it first.

        Raises:
            RunError: The run went another way than the study.
            StudyError: As `news`, when the run begins or goes on.
        """
        try:
            there = self._remote.trials()
            self._check(there)
            for frozen in there:
                if frozen.user_attrs.get(OWNER_KEY) == self._remote.me:
                    self._remote.settle(frozen.number)
            self.news()
        except StudyError:
            if not self._remote.is_ending:
                raise
            # Open trials stay open in the journal, and are settled when the run goes on.

    def _check(self, there: Sequence[FrozenTrial]) -> None:
        """Compare what has ended in the journal with the storage, and tell it what it lacks."""
        for kept in self._study.get_trials(deepcopy=False):
            other = there[kept.number] if kept.number < len(there) else None
            if other is None or plan_of(other) != plan_of(kept):
                raise self._parted(kept.number)
            record = kept.user_attrs.get(TRIAL_KEY)
            if record is None:  # it is open, or never had a plan
                continue
            mine = trial_from_record(record)
            told = trial_of(other)
            if not other.state.is_finished():
                self._tell_late(mine, other)
            elif _same(told, mine):
                continue
            elif told is not None and told.failure == INTERRUPTED:
                self._tell_again(mine)
            else:
                raise self._parted(kept.number)

    def _tell_late(self, mine: Trial, other: FrozenTrial) -> None:
        """Tell how a trial ended that is open in the storage."""
        if mine.failure == INTERRUPTED:
            owner = other.user_attrs.get(OWNER_KEY)
            if owner != self._remote.me and not self._remote.has_ended(owner):
                raise self._parted(mine.number)
            self._remote.settle(mine.number)
        elif not self._remote.finish(mine):
            self._tell_again(mine)

    def _parted(self, number: int) -> RunError:
        return RunError(
            f"Trial {number} in {self._journal.path} is not trial {number} of the study "
            f"{self._remote.name} in {self._remote.storage.address.shown}: the run went on "
            "without it.",
            remedy="Go on without --storage, or join the study in a new run folder "
            "(study_checkpoint_dir).",
        )

    def pause(self) -> None:
        """Wait a moment for the others."""
        time.sleep(POLL)

    def hurry(self) -> None:
        """From now on, do not wait long for a storage that does not answer."""
        self._remote.hurry()


def _same(one: Trial | None, other: Trial) -> bool:
    """Whether two trials say the same of a plan; times count for nothing."""
    return one is not None and _said(one) == _said(other)


def _said(trial: Trial) -> tuple[object, ...]:
    # As records: the value of a score that is withheld equals nothing, not even itself.
    return trial.plan, trial.state, [score.to_dict(with_values=True) for score in trial.scores]
