"""TPE that gives several proposals at the price of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

CANDIDATES = 128
"""Candidates from which one proposal is chosen."""

FEWEST_CANDIDATES = 24
"""Candidates for each of many proposals: the number that Optuna takes for one."""


class BatchTPE(optuna.samplers.TPESampler):
    """A multivariate TPE that can give several proposals from one estimate of the densities.

    Fitting and comparing densities is what a proposal costs; drawing from them costs little. The
    candidates are divided into groups, and the best of each is a proposal: what as many processes
    would propose which know the same trials, and not of each other (Bergstra et al. 2011,
    section 4, "parallelization").

    Args:
        n_startup_trials: Complete trials before it learns.
        seed: Of all draws.
        proposals: How many proposals to make; the first is the one that Optuna gets.
    """

    def __init__(self, n_startup_trials: int, seed: int, proposals: int = 1) -> None:
        super().__init__(
            n_startup_trials=n_startup_trials,
            n_ei_candidates=max(CANDIDATES, FEWEST_CANDIDATES * proposals),
            multivariate=True,
            # Trials of a batch count as bad ones until they have scores, so that the next proposal
            # goes elsewhere. With one plan at a time there are no such trials.
            constant_liar=True,
            seed=seed,
        )
        self._proposals = proposals
        self._best: list[dict[str, float]] = []

    def others(
        self, distributions: Mapping[str, optuna.distributions.BaseDistribution]
    ) -> list[dict[str, Any]]:
        """Parameters of the proposals after the first; none before it learns.

        Args:
            distributions: Those of the first proposal.
        """
        return [
            {name: one.to_external_repr(best[name]) for name, one in distributions.items()}
            for best in self._best[1:]
            if best.keys() == distributions.keys()
        ]

    def _compute_acquisition_func(  # the one place at which all candidates can be seen
        self, samples: dict[str, NDArray[Any]], mpe_below: Any, mpe_above: Any
    ) -> NDArray[Any]:
        values = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        best = [group[np.argmax(values[group])] for group in self._groups(values)]
        best.sort(key=lambda index: -values[index])  # Optuna takes the best of all
        self._best = [
            {name: column[index].item() for name, column in samples.items()} for index in best
        ]
        return values

    def _groups(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        return np.array_split(np.arange(values.size), self._proposals)
