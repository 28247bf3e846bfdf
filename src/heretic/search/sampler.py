"""Optuna's samplers behind two calls: propose plans, learn a trial."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import optuna
from optuna.storages.journal._base import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from heretic.errors import HereticError, RunError
from heretic.records.plan import Plan
from heretic.records.trial import Optimization, Trial
from heretic.runs.journal import (
    INTERRUPTED,
    TRIAL_KEY,
    Journal,
    trial_from_record,
    trial_to_record,
)
from heretic.search.batch_tpe import BatchTPE
from heretic.search.learned import STATES, Learned
from heretic.search.space import Space

STUDY_NAME = "heretic"
PLAN_KEY = "heretic_plan"
ORDINAL_KEY = "heretic_ordinal"

SamplerKind = Literal["tpe", "gp"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's log lines and warnings off the terminal while it works."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def sampler_seed(seed: int, ordinal: int, salt: int = 0) -> int:
    """The seed of one proposal: 32 bits that depend only on the arguments.

    Each trial has its own seed, whatever was drawn before, so a search that was interrupted and
    resumed proposes what an uninterrupted one would.
    """
    return int(np.random.SeedSequence([seed, ordinal, salt]).generate_state(1)[0])


class _Backend(BaseJournalBackend):
    """Optuna's storage in a run's journal, which only this process changes."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.waits = True  # whether what a trial has given is waited for until it is on disk
        self._unseen: list[dict[str, Any]] = []
        self._next = 0  # number of the first unseen line

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """All lines from this number on."""
        if log_number_from == 0 or log_number_from != self._next:
            with self._journal.path.open("rb") as file:
                self._unseen = [json.loads(line) for line in islice(file, log_number_from, None)]
        unseen, self._unseen = self._unseen, []
        self._next = log_number_from + len(unseen)
        return unseen

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines to the journal; what a trial has given is waited for until it is on disk.

        Plans without scores can be proposed again, and a trial with scores can be closed again.
        """
        sync = self.waits and any(TRIAL_KEY in log.get("user_attr", ()) for log in logs)
        self._journal.append(logs, sync=sync)
        self._unseen += json.loads(json.dumps(logs))


def trials_in(
    journal: Journal,
) -> tuple[list[Literal["minimize", "maximize"]], list[optuna.trial.FrozenTrial]]:
    """Directions and trials of the study in a journal, by number; also of those that are open.

    Raises:
        RunError: The journal is damaged.
    """
    try:
        with quiet():
            storage = optuna.storages.JournalStorage(_Backend(journal))
            study = storage.get_study_id_from_name(STUDY_NAME)
            return [
                "maximize" if one == StudyDirection.MAXIMIZE else "minimize"
                for one in storage.get_study_directions(study)
            ], storage.get_all_trials(study, deepcopy=False)
    except KeyError:  # no study was begun
        return [], []
    except HereticError:
        raise
    except Exception as error:  # lines of earlier releases have no check values
        raise _damaged(journal.path, error) from error


def _damaged(journal: Path, error: Exception) -> RunError:
    return RunError(
        f"The journal {journal} is damaged: Optuna cannot read it "
        f"({type(error).__name__}: {error}).",
        remedy="Restore it from a copy, or start the run over (checkpoint_action = restart).",
    )


class OptunaStudy:
    """The Optuna study in one run's journal. The caller holds the run's lock.

    Args:
        journal: The run's journal.
        objectives: How each score is optimised, in the order of the scores.
        seed: The run's seed.
        n_startup_trials: Completed trials before the sampler learns.
        sampler: `tpe` (Watanabe 2023, arXiv 2304.11127), multivariate; or `gp`, Gaussian processes
            and expected hypervolume improvement.
        aim: None, or the bound of the first objective, which is minimised. The sampler then learns
            one objective from each trial, the second, under the constraint that the first is within
            the bound (constrained expected improvement, or TPE's order of infeasible trials). Its
            proposals gather there. The journal holds all values as always, so that a run can go
            on with another aim.

    Raises:
        RunError: The journal belongs to a search for other objectives, or cannot be written.
    """

    def __init__(
        self,
        journal: Journal,
        space: Space,
        objectives: Sequence[Optimization],
        seed: int,
        n_startup_trials: int,
        sampler: SamplerKind = "tpe",
        aim: float | None = None,
    ) -> None:
        self._sampler: SamplerKind = sampler
        self._aim = aim
        self._journal = journal
        self._backend = _Backend(journal)
        self._space = space
        self._seed = seed
        self._n_startup_trials = n_startup_trials
        self._stock: list[optuna.trial.BaseTrial] = []
        directions = [choice for choice in objectives if choice != "none"]
        try:
            with quiet():
                self._storage = optuna.storages.JournalStorage(self._backend)
                self._study = optuna.create_study(
                    storage=self._storage,
                    study_name=STUDY_NAME,
                    directions=directions,
                    load_if_exists=True,
                )
            self._id = self._storage.get_study_id_from_name(STUDY_NAME)
        except HereticError:
            raise
        except Exception as error:  # lines of earlier releases have no check values
            raise _damaged(journal.path, error) from error
        if [direction.name.lower() for direction in self._study.directions] != directions:
            raise RunError(
                f"The trials in {journal.path} belong to a search for other objectives.",
                remedy="Start the run over (checkpoint_action = restart).",
            )
        self._learned = Learned(self._study.directions, n_startup_trials, aim)

    @property
    def next_number(self) -> int:
        """The number that the next trial will have."""
        return len(self._study.get_trials(deepcopy=False))

    def ordinals(self) -> dict[int, int]:
        """Ordinals of the proposals that were to be kept, by the trial's number."""
        trials = self._study.get_trials(deepcopy=False)
        return {t.number: t.user_attrs[ORDINAL_KEY] for t in trials if ORDINAL_KEY in t.user_attrs}

    def propose(
        self, ordinal: int, salt: int = 0, *, keep: bool = False, stock: int = 1
    ) -> tuple[int, Plan]:
        """A new trial's number and the plan the sampler proposes for it.

        Args:
            ordinal: What gives each proposal its own seed: the number of trials before this one,
                without interrupted trials, or the trial's own number.
            salt: Another number gives another plan at the same ordinal.
            keep: Write the ordinal to the journal: needed where trials end in another order.
            stock: How many plans to propose together, if the sampler can; those after the first
                are what the next calls return. They know nothing of trials that end in between.

        Raises:
            RunError: What the journal holds about earlier trials is damaged.
        """
        if not self._stock:
            self._stock = self._drawn(sampler_seed(self._seed, ordinal, salt), stock)
        trial = self._stock.pop(0)
        plan = self._space.suggest(trial)
        kept = {ORDINAL_KEY: ordinal} if keep else {}
        return self._added(plan, trial.params, trial.distributions, kept), plan

    def _drawn(self, seed: int, count: int) -> list[optuna.trial.BaseTrial]:
        """Trials with their parameters: one, or as many as asked for if the sampler can."""
        sampler = self._made(seed, count)
        with quiet():
            # The sampler works on a copy, which has few trials however long the search is.
            directions = (
                self._study.directions if self._aim is None else self._study.directions[1:2]
            )
            storage = optuna.storages.InMemoryStorage()
            study = optuna.create_study(storage=storage, directions=directions, sampler=sampler)
            there = storage.get_study_id_from_name(study.study_name)
            try:
                trials = self._study.get_trials(deepcopy=False, states=STATES)
                for known in self._learned.of(trials, seed):
                    storage.create_new_trial(there, known)
            except Exception as error:  # lines of earlier releases have no check values
                raise _damaged(self._journal.path, error) from error
            trial = study.ask()
            self._space.suggest(trial)
        others = sampler.others(trial.distributions) if isinstance(sampler, BatchTPE) else []
        return [optuna.trial.FixedTrial(params) for params in (trial.params, *others)]

    def _made(self, seed: int, proposals: int) -> optuna.samplers.BaseSampler:
        if self._sampler == "gp":
            return optuna.samplers.GPSampler(n_startup_trials=self._n_startup_trials, seed=seed)
        return BatchTPE(self._n_startup_trials, seed, proposals)

    def params_of(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """The parameters of these trials; empty for plans from outside the space.

        They are empty as well for trials that Optuna's own records lack, as in a damaged journal.
        """
        known = {trial.number: trial.params for trial in self._study.get_trials(deepcopy=False)}
        return [dict(known.get(number, {})) for number in numbers]

    def adopt(self, plan: Plan) -> int:
        """Add a trial for a given plan; returns its number."""
        params = self._space.plan_to_params(plan) or {}
        return self._added(plan, params, self._distributions() if params else {})

    def _added(
        self,
        plan: Plan,
        params: dict[str, Any],
        distributions: dict[str, optuna.distributions.BaseDistribution],
        kept: Mapping[str, int] = MappingProxyType({}),
    ) -> int:
        """Keep a plan as a trial that is now evaluated; returns its number."""
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions=distributions,
            user_attrs={PLAN_KEY: plan.to_dict(), **kept},
        )
        trial_id = self._storage.create_new_trial(self._id, template)
        return self._storage.get_trial(trial_id).number

    def learn(self, trial: Trial) -> None:
        """Keep a finished trial, and let the sampler learn from it.

        The record is written first: a kill between the two lines loses nothing.
        """
        key = self._key(trial.number)
        self._storage.set_trial_user_attr(key, TRIAL_KEY, trial_to_record(trial))
        self._close(trial)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for the disk once for all trials that are learned here, at the end.

        Raises:
            RunError: The journal cannot be written.
        """
        self._backend.waits = False
        try:
            yield
        finally:
            self._backend.waits = True
            self._journal.sync()

    def settle(self) -> None:
        """Close trials that a killed process left open: by their record, or else as interrupted."""
        for frozen in self._study.get_trials(deepcopy=False):
            if frozen.state.is_finished():
                continue
            record = frozen.user_attrs.get(TRIAL_KEY)
            plan = frozen.user_attrs.get(PLAN_KEY)
            if record is not None:
                self._close(trial_from_record(record))
            elif plan is not None:
                self.learn(
                    Trial(
                        number=frozen.number,
                        plan=Plan.from_dict(plan),
                        scores=(),
                        state="failed",
                        failure=INTERRUPTED,
                    )
                )
            else:  # killed before it had a plan
                self._fail(frozen.number)

    # --- what only a study that others search on too has (`heretic.search.shared`) -----------

    def news(self) -> list[Trial]:
        """Trials that have ended elsewhere since this was last asked; the journal holds them."""
        return []

    def elsewhere(self) -> Mapping[int, Plan]:
        """Plans that others evaluate now, by the trial's number."""
        return {}

    def reserve(self) -> int:
        """Take the number of the next trial."""
        raise NotImplementedError

    def await_turn(self, number: int, may_wait: Callable[[], bool]) -> bool:
        """Wait until all plans before a reserved trial are known, while one may; whether they are.

        Args:
            may_wait: Asked again and again, while it is not this trial's turn.
        """
        raise NotImplementedError

    def assign(self, number: int, plan: Plan | None) -> Plan | None:
        """Give a reserved trial its plan, or the sampler's; None if others have settled it."""
        raise NotImplementedError

    def give_up(self, number: int) -> None:
        """Let a reserved trial go without a plan."""
        raise NotImplementedError

    def pause(self) -> None:
        """Wait a moment for the others."""

    def hurry(self) -> None:
        """From now on, do not wait long for a storage that does not answer."""

    def _close(self, trial: Trial) -> None:
        values = [score.value for score in trial.scores if score.optimization != "none"]
        frozen = self._frozen(trial.number)
        # A plan from outside the space has scores but no parameters. If it counted as complete,
        # the sampler would have no parameter that all trials share.
        if trial.state == "complete" and frozen.params and self._can_learn(values):
            self._storage.set_trial_state_values(
                self._key(trial.number), TrialState.COMPLETE, values
            )
        else:
            self._fail(trial.number)

    def _can_learn(self, values: Sequence[float]) -> bool:
        """Whether Optuna takes these values."""
        return len(values) == len(self._study.directions) and not any(map(math.isnan, values))

    def _key(self, number: int) -> int:
        """Optuna's own number of a trial."""
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        """A trial of the journal as Optuna has it, without a list of all."""
        return self._storage.get_trial(self._key(number))

    def _fail(self, number: int) -> None:
        self._storage.set_trial_state_values(self._key(number), TrialState.FAIL)

    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        ranges = {
            name: optuna.distributions.FloatDistribution(bounds.low, bounds.high)
            for name, bounds in self._space.ranges.items()
        }
        choices = {
            name: optuna.distributions.CategoricalDistribution(values)
            for name, values in self._space.choices.items()
        }
        return {**choices, **ranges}
