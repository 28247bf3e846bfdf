"""What a sampler is shown of a search: few trials, without what it does not look at."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from heretic.records.trial import undominated

MOST_LEARNED_FROM = 200
"""Complete trials that a proposal is computed from at most, so that its time is bounded. Searches
of the default length stay below it."""

MOST_RUNNING = 64
"""Running trials that a proposal keeps away from at most: the latest."""

STATES = (TrialState.COMPLETE, TrialState.RUNNING)
"""Of the trials that a sampler looks at."""


class Learned:
    """The trials that a sampler learns from.

    Args:
        directions: Of the objectives.
        n_startup_trials: Complete trials before it learns.
        aim: See `heretic.search.sampler.OptunaStudy`.
    """

    def __init__(
        self, directions: Sequence[StudyDirection], n_startup_trials: int, aim: float | None
    ) -> None:
        self._signs = [-1.0 if one == StudyDirection.MAXIMIZE else 1.0 for one in directions]
        self._n_startup_trials = n_startup_trials
        self._aim = aim
        self._complete: dict[int, FrozenTrial] = {}  # as they are shown, by number

    def of(self, trials: Sequence[FrozenTrial], seed: int) -> list[FrozenTrial]:
        """The trials to show, in their order; none before the sampler learns.

        Args:
            trials: All that are complete or running.
            seed: Of the choice among many.

        Raises:
            ValueError: A complete trial is damaged.
        """
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        for trial in complete:  # this also finds damaged ones
            if trial.number not in self._complete:
                self._complete[trial.number] = self._shown(trial)
        if len(complete) < self._n_startup_trials:
            return []
        most = max(MOST_LEARNED_FROM, self._n_startup_trials)
        if len(complete) > most:
            kept = self._informative(complete, most, np.random.default_rng(seed))
            complete = [trial for trial in complete if trial.number in kept]
        known = sorted([*complete, *running[-MOST_RUNNING:]], key=lambda trial: trial.number)
        return [self._complete.get(trial.number) or self._shown(trial) for trial in known]

    def _informative(
        self, complete: Sequence[FrozenTrial], most: int, rng: np.random.Generator
    ) -> set[int]:
        """Numbers of the trials from which a sampler learns: the front, and a sample of the rest.

        The sample is drawn anew for each proposal, so that no trial is forgotten for good. A front
        that would take more than half of the places is thinned evenly.
        """
        numbers: dict[tuple[float, ...], int] = {}
        for trial in complete:
            point = tuple(sign * v for sign, v in zip(self._signs, trial.values, strict=True))
            numbers.setdefault(point, trial.number)
        best = [numbers[point] for point in undominated(numbers)]
        if len(best) > most // 2:
            best = [best[i] for i in np.linspace(0, len(best) - 1, most // 2).round().astype(int)]
        others = sorted({trial.number for trial in complete} - set(best))
        return {*best, *rng.choice(others, most - len(best), replace=False).tolist()}

    def _shown(self, trial: FrozenTrial) -> FrozenTrial:
        """A trial with what samplers look at."""
        values, constraints = trial.values, None
        if self._aim is not None and values is not None:
            # Shares are quotients of small numbers: what is closer than this is equal.
            constraints = {"first objective": values[0] - self._aim - 1e-9}
            values = [values[1]]
        shown = create_trial(
            state=trial.state,
            values=values,
            params=trial.params,
            distributions=trial.distributions,
            constraints=constraints,
        )
        shown.__class__ = _Shown
        return shown


class _Shown(FrozenTrial):
    """A trial that is put into a study without copies of what it holds: nobody changes it there."""

    def __deepcopy__(self, memo: object) -> FrozenTrial:
        return copy(self)
