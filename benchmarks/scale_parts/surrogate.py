"""Scores of plans without a model, spread as those of a real search.

Layers count by a bump over depth, more ablation leaves fewer refusals, and its square does the
damage. Where the bump lies is made up; how refusals and divergences of random plans are spread is
fitted to the 180 random trials in `benchmarks/search_data/demo-peer-*.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heretic.records.plan import ATTENTION, MLP, Plan
from heretic.records.trial import Score
from heretic.search.space import SearchSpace

LAYERS = 30
BEST_LAYER, WIDTH = 18.0, 5.0
SHARES = {ATTENTION: 0.6, MLP: 0.4}
MOST_REFUSED = 0.9
QUANTILES = np.linspace(0.05, 0.95, 19)
DATA = Path(__file__).parents[1] / "search_data"
RANDOM_PLANS = 1000


class Random:
    """Uniform draws."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """A number from [low, high]."""
        return float(self._rng.uniform(low, high))

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """One of the choices."""
        return str(self._rng.choice(list(choices)))


def space() -> SearchSpace:
    """The default space of a model with 30 layers."""
    return SearchSpace(LAYERS, list(SHARES))


def amounts(plan: Plan) -> tuple[float, float]:
    """What a plan removes of the behaviour, and of all else: in units that are fitted."""
    layers = np.arange(LAYERS)
    bump = np.exp(-0.5 * ((layers - BEST_LAYER) / WIDTH) ** 2)
    off = 0.0 if plan.direction_index is None else (plan.direction_index - BEST_LAYER) / WIDTH
    removed = damage = 0.0
    for component, share in SHARES.items():
        weights = np.zeros(LAYERS)
        for layer in range(LAYERS):
            weights[layer] = sum(plan.ablation_weights(component, layer))
        removed += share * float(bump @ weights / bump.sum()) * np.exp(-0.25 * off**2)
        damage += share * float(np.mean(weights**2))
    return removed, damage


def _recorded() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Refusals (shares) and divergences (nats) of the random trials on record."""
    trials = [
        trial
        for path in sorted(DATA.glob("demo-peer-*.json"))
        for trial in json.loads(path.read_text())["trials"]
    ]
    return (
        np.array([trial["keywords"] for trial in trials]),
        np.array([trial["kl_divergence"] for trial in trials]),
    )


class Surrogate:
    """Scores of plans; the same plan always has the same."""

    def __init__(self) -> None:
        refused, divergence = _recorded()
        draw = Random(0)
        found = np.array([amounts(space().suggest(draw)) for _ in range(RANDOM_PLANS)])
        removed, damage = (np.quantile(column, QUANTILES) for column in found.T)
        odds = np.clip(np.quantile(refused, 1 - QUANTILES) / MOST_REFUSED, 0.005, 0.995)
        self._refusals = np.polyfit(removed, np.log(odds / (1 - odds)), 1)
        self._divergence = np.polyfit(np.log(damage), np.log(np.quantile(divergence, QUANTILES)), 1)

    def __call__(self, plan: Plan) -> tuple[Score, ...]:
        """Refusals in hundredths, and the divergence."""
        removed, damage = amounts(plan)
        refused = MOST_REFUSED / (1 + np.exp(-np.polyval(self._refusals, removed)))
        refused = round(float(refused), 2)
        divergence = float(np.exp(np.polyval(self._divergence, np.log(damage + 1e-9))))
        return (
            Score("refusals", refused, "minimize", f"{round(100 * refused)}/100"),
            Score("kl_divergence", divergence, "minimize", f"{divergence:.4f}"),
        )
