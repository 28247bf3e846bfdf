"""Optuna's samplers behind two calls: propose plans, learn a trial. The only user of Optuna."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from heretic.errors import RunError
from heretic.records.plan import Plan
from heretic.records.trial import Optimization, Trial
from heretic.runs.folder import GOES_ON
from heretic.runs.journal import INTERRUPTED, TRIAL_KEY, trial_from_record, trial_to_record
from heretic.search.space import Space
from heretic.system.files import cannot_write

STUDY_NAME = "heretic"
PLAN_KEY = "heretic_plan"
N_CANDIDATES = 128

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


class _RunLockHeld(JournalFileOpenLock):
    """No lock: the caller holds the run's own lock, which ends with a killed process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class _Journal(JournalFileBackend):
    """A journal that raises write errors as `RunError` with a remedy."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=_RunLockHeld(str(path)))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError as error:
            raise cannot_write(self._path, error, GOES_ON) from error


class OptunaStudy:
    """The Optuna study in one run's journal. The caller holds the run's lock.

    Args:
        journal: Path of the repaired journal; created if missing.
        objectives: How each score is optimised, in the order of the scores.
        seed: The run's seed.
        n_startup_trials: Completed trials before the sampler learns.
        sampler: `tpe` (Watanabe 2023, arXiv 2304.11127), multivariate; or `gp`, Gaussian processes
            and expected hypervolume improvement.

    Raises:
        RunError: The journal belongs to a search for other objectives, or cannot be written.
    """

    def __init__(
        self,
        journal: Path,
        space: Space,
        objectives: Sequence[Optimization],
        seed: int,
        n_startup_trials: int,
        sampler: SamplerKind = "tpe",
    ) -> None:
        self._sampler: SamplerKind = sampler
        self._space = space
        self._seed = seed
        self._n_startup_trials = n_startup_trials
        directions = [choice for choice in objectives if choice != "none"]
        with quiet():
            self._storage = optuna.storages.JournalStorage(_Journal(journal))
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=STUDY_NAME,
                directions=directions,
                load_if_exists=True,
            )
        self._id = self._storage.get_study_id_from_name(STUDY_NAME)
        if [direction.name.lower() for direction in self._study.directions] != directions:
            raise RunError(
                f"The trials in {journal} belong to a search for other objectives.",
                remedy="Start the run over (checkpoint_action = restart).",
            )

    def propose(self, ordinal: int, salt: int = 0) -> tuple[int, Plan]:
        """A new trial's number and the plan the sampler proposes for it.

        Args:
            ordinal: Number of trials before this one, without interrupted trials.
            salt: Another number gives another plan at the same ordinal.
        """
        with quiet():
            self._study.sampler = self._made(sampler_seed(self._seed, ordinal, salt))
            trial = self._study.ask()
            plan = self._space.suggest(trial)
            trial.set_user_attr(PLAN_KEY, plan.to_dict())
        return trial.number, plan

    def _made(self, seed: int) -> optuna.samplers.BaseSampler:
        if self._sampler == "gp":
            return optuna.samplers.GPSampler(n_startup_trials=self._n_startup_trials, seed=seed)
        return optuna.samplers.TPESampler(
            n_startup_trials=self._n_startup_trials,
            n_ei_candidates=N_CANDIDATES,
            multivariate=True,
            # Trials of a batch count as bad ones until they have scores, so that the next proposal
            # goes elsewhere. With one plan at a time there are no such trials.
            constant_liar=True,
            seed=seed,
        )

    def adopt(self, plan: Plan) -> int:
        """Add a trial for a given plan; returns its number."""
        params = self._space.plan_to_params(plan) or {}
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions=self._distributions() if params else {},
            user_attrs={PLAN_KEY: plan.to_dict()},
        )
        trial_id = self._storage.create_new_trial(self._id, template)
        return self._storage.get_trial(trial_id).number

    def learn(self, trial: Trial) -> None:
        """Keep a finished trial, and let the sampler learn from it.

        The record is written first: a kill between the two lines loses nothing.
        """
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
        self._storage.set_trial_user_attr(trial_id, TRIAL_KEY, trial_to_record(trial))
        self._close(trial)

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

    def _close(self, trial: Trial) -> None:
        values = [score.value for score in trial.scores if score.optimization != "none"]
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        # A plan from outside the space has scores but no parameters. If it counted as complete,
        # the sampler would have no parameter that all trials share.
        if trial.state == "complete" and frozen.params:
            with quiet():
                self._study.tell(trial.number, values)
        else:
            self._fail(trial.number)

    def _fail(self, number: int) -> None:
        with quiet():
            self._study.tell(number, state=TrialState.FAIL)

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
