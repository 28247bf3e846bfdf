"""The study: asks the sampler for plans, has them evaluated, and survives whatever happens.

The study lives in Optuna's journal in the run folder. The sampler of attempt k is seeded with
(seed, k) and learns from the journal alone, so a search that was interrupted goes on with the very
plans that an uninterrupted one would have tried.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from heretic import records
from heretic.errors import StudyError
from heretic.events import Reporter, SearchFinished, SearchStarted, TrialFinished, TrialStarted
from heretic.records import Optimization, Plan, Score, Trial
from heretic.runs import RunFolder
from heretic.search.space import SearchSpace

NAME = "heretic"
INTERRUPTED = "interrupted"
FAILURES_IN_A_ROW = 10
CANDIDATES = 128

Evaluate = Callable[[Plan], tuple[Score, ...]]


class Study:
    """The trials of one run.

    Attributes:
        space: Where plans are drawn from.
    """

    def __init__(
        self,
        folder: RunFolder,
        space: SearchSpace,
        *,
        objectives: Sequence[Optimization],
        seed: int,
        n_startup_trials: int,
        start_plans: Iterable[Plan] = (),
    ) -> None:
        """Open the run's study, or begin one.

        Args:
            folder: Locked by the caller.
            objectives: One for each scorer, in order; `none` is reported but not searched for.
            seed: Of every random choice.
            n_startup_trials: Random trials before the sampler learns.
            start_plans: Tried first, once.

        Raises:
            StudyError: No scorer is to be optimised.
        """
        directions = [str(objective) for objective in objectives if objective != "none"]
        if not directions:
            raise StudyError(
                "No scorer is optimised.",
                remedy="Set `optimization` of at least one scorer to minimize or maximize.",
            )
        self.space = space
        self._folder = folder
        self._seed = seed
        self._n_startup_trials = n_startup_trials
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            storage=_storage(folder.journal_path),
            study_name=NAME,
            directions=directions,
            load_if_exists=True,
        )
        self._close_abandoned()
        known = {trial.plan for trial in self.trials if trial.failure != INTERRUPTED}
        self._start_plans = [plan for plan in start_plans if plan not in known]

    @property
    def trials(self) -> list[Trial]:
        """Every finished trial, in order; failed ones with their reason."""
        return _records(self._study.get_trials(deepcopy=False))

    @property
    def front(self) -> list[Trial]:
        """The trials that no other dominates, sorted as shown."""
        return records.front(self.trials)

    @property
    def completed(self) -> int:
        """Number of completed trials."""
        return sum(trial.state == "complete" for trial in self.trials)

    def run(
        self,
        evaluate: Evaluate,
        n_trials: int,
        reporter: Reporter,
        baseline: tuple[Score, ...] = (),
    ) -> None:
        """Go on until `n_trials` trials are complete in all.

        A trial that fails is recorded with its reason, and the search goes on.

        Raises:
            StudyError: Ten trials in a row failed.
            KeyboardInterrupt: Passed on; only the trial it struck is lost.
        """
        completed = self.completed
        reporter.emit(SearchStarted(completed, n_trials, baseline))
        start, failures, durations = perf_counter(), 0, []
        reason = "failed"
        try:
            while completed < n_trials:
                trial = self._one(evaluate, completed, n_trials, reporter)
                durations.append(trial.seconds)
                complete = trial.state == "complete"
                completed += complete
                failures = 0 if complete else failures + 1
                front = self.front
                self._folder.write_front(front)
                remaining = (n_trials - completed) * sum(durations) / len(durations)
                reporter.emit(
                    TrialFinished(
                        trial, front, completed, n_trials, perf_counter() - start, remaining
                    )
                )
                if failures == FAILURES_IN_A_ROW:
                    raise StudyError(
                        f"{failures} trials in a row failed, the last one with: {trial.failure}.",
                        remedy="The log in the run folder has every traceback; mend the cause and "
                        "run again to go on.",
                    )
            reason = "done"
        except KeyboardInterrupt:
            reason = INTERRUPTED
            raise
        finally:
            reporter.emit(SearchFinished(reason, completed, perf_counter() - start))

    def _one(self, evaluate: Evaluate, completed: int, n_trials: int, reporter: Reporter) -> Trial:
        """Ask for a plan, evaluate it, tell the study."""
        asked, plan = self._ask()
        asked.set_user_attr("plan", plan.to_dict())
        reporter.emit(TrialStarted(asked.number, completed, n_trials))
        start = perf_counter()
        try:
            scores = _finite(evaluate(plan))
        except KeyboardInterrupt:
            self._fail(asked, INTERRUPTED, perf_counter() - start)
            raise
        except Exception as error:  # whatever went wrong, the study outlives it
            _log_failure(asked.number)
            self._fail(asked, _reason(error), perf_counter() - start)
        else:
            asked.set_user_attr("seconds", perf_counter() - start)
            asked.set_user_attr("scores", [asdict(score) for score in scores])
            values = [score.value for score in scores if score.optimization != "none"]
            self._study.tell(asked, values)
        return _record(self._study.get_trials(deepcopy=False)[asked.number])

    def _ask(self) -> tuple[optuna.Trial, Plan]:
        if self._start_plans:
            plan = self._start_plans.pop(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # plans outside the ranges are welcome
                self._study.enqueue_trial(self.space.parameters(plan))
                asked = self._study.ask()
                self.space.suggest(asked)
            return asked, plan
        self._study.sampler = self._sampler()
        asked = self._study.ask()
        return asked, self.space.suggest(asked)

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """A fresh sampler whose randomness depends on the seed and the attempt alone."""
        attempt = sum(trial.failure != INTERRUPTED for trial in self.trials)
        state = np.random.SeedSequence([self._seed, attempt]).generate_state(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                n_startup_trials=self._n_startup_trials,
                n_ei_candidates=CANDIDATES,
                multivariate=True,
                seed=int(state[0]),
            )

    def _fail(self, asked: optuna.Trial, reason: str, seconds: float) -> None:
        asked.set_user_attr("failure", reason)
        asked.set_user_attr("seconds", seconds)
        self._study.tell(asked, state=TrialState.FAIL)

    def _close_abandoned(self) -> None:
        """Trials that a killed process left open become interrupted ones."""
        open_states = (TrialState.RUNNING, TrialState.WAITING)
        for trial in self._study.get_trials(deepcopy=False, states=open_states):
            self._study.tell(trial.number, state=TrialState.FAIL)


def load_trials(folder: RunFolder) -> list[Trial]:
    """The trials in a run folder, read only; empty if no search has begun there."""
    if not folder.journal_path.is_file():
        return []
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(folder.journal_path)))
    names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
    if NAME not in names:
        return []
    return _records(optuna.load_study(study_name=NAME, storage=storage).get_trials(deepcopy=False))


def _storage(path: Path) -> JournalStorage:
    """The journal, mended after a kill: only this process may hold the run folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # a line that was being written
            with path.open("r+b") as file:
                file.truncate(whole)
    for leftover in path.parent.glob(f"{path.name}*.lock"):
        leftover.unlink(missing_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _records(trials: Iterable[FrozenTrial]) -> list[Trial]:
    finished = (trial for trial in trials if trial.state.is_finished())
    return [_record(trial) for trial in finished if "plan" in trial.user_attrs]


def _record(trial: FrozenTrial) -> Trial:
    attributes: dict[str, Any] = trial.user_attrs
    complete = trial.state == TrialState.COMPLETE
    return Trial(
        number=trial.number,
        plan=Plan.from_dict(attributes["plan"]),
        scores=tuple(Score(**row) for row in attributes.get("scores", ())) if complete else (),
        state="complete" if complete else "failed",
        failure=None if complete else attributes.get("failure", INTERRUPTED),
        seconds=float(attributes.get("seconds", 0.0)),
    )


def _finite(scores: tuple[Score, ...]) -> tuple[Score, ...]:
    """The scores, if all are numbers.

    Raises:
        FloatingPointError: One is NaN or infinite; the model broke.
    """
    for score in scores:
        if not math.isfinite(score.value):
            raise FloatingPointError(f"{score.name} is {score.value}")
    return scores


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _log_failure(number: int) -> None:
    import logging

    logging.getLogger("heretic").exception("Trial %d failed", number)
