"""Gradient search: a sweep over trade-offs between damage and refusal, one plan for each.

Minimises, over one ablation weight per component, layer and direction,

    KL + trade_off * mean softplus(log-odds of refusal + MARGIN) + penalty

by Gauss-Newton steps on mini-batches, from the cheapest trade-off to the dearest, each starting
where the one before ended. There are few weights, tens to hundreds, so that curvature is a small
matrix, and what earlier mini-batches told is used again (cf. the stochastic Newton method of
Kovalev, Mishchenko & Richtarik 2019, arXiv 1912.01597). The penalty keeps weights small, and so
edits few.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from heretic.errors import StudyError
from heretic.model.core import Model
from heretic.model.editing import EditFactory
from heretic.model.reading import Prompts
from heretic.records.plan import LayerWeights, Plan, RowNormalization
from heretic.search.objective import Objective, Sample

TRADE_OFFS = tuple(0.01 * 1.8**power for power in range(12))
"""Nats of KL divergence that one unit of the refusal term is worth, in the order of the sweep."""

GONE = 0.005
"""The sweep ends where what is to go, refusal or its opposite, is this much as likely as it was, on
average: what follows costs more and gains nothing."""

FIRST_STEPS, STEPS = 4, 2
"""Steps at the first trade-off, and at each one after it."""

BATCH = 16
"""Good prompts of a step, and bad ones."""

MARGIN = 2.0
"""Refusal is pushed down until its odds are well below 1 in e^2 (12%)."""

PENALTY = 0.01
"""Half of it times the squared weights, in nats, is added to the objective."""

DECAY = 0.8
"""Weight that a prompt's linearisation keeps with every step after the one it was made in."""

ITERATIONS = 500
"""At most, to the minimum of the convex function that all linearisations make."""

LARGEST_STEP = 1.0
"""No weight moves further in one step: beyond, linearisations are not to be trusted."""

LOWEST = 0.3
"""Part of the layers, from below, that is left alone: directions are not formed there yet, and what
is not edited need not be differentiated."""

DIGITS = 4
"""Of a weight in a plan: more than the search can tell apart."""


@dataclass(frozen=True, slots=True)
class Linearisation:
    """What one mini-batch told, at the weights where it was asked.

    Attributes:
        at: Flat weights, [weights].
        sample: Values and derivatives there.
    """

    at: Tensor
    sample: Sample


def sweep(
    objective: Objective,
    seed: int,
    trade_offs: Sequence[float] = TRADE_OFFS,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Tensor]:
    """Weights [components, layers, k] that are best at each trade-off, one after the other.

    Ends early once hardly any refusal is left.

    Args:
        seed: Of mini-batches and curvature probes.
        on_step: Told (steps done, steps at most).

    Raises:
        StudyError: The gradient is not finite.
    """
    weights = torch.zeros(objective.shape).flatten()
    seen: list[Linearisation] = []
    likely: list[float] = []
    good = _batches(range(objective.good), random.Random(seed))  # noqa: S311 - not a secret
    bad = _batches(objective.bad, random.Random(seed + 1))  # noqa: S311
    generator = torch.Generator().manual_seed(seed)
    total = FIRST_STEPS + STEPS * (len(trade_offs) - 1)
    for trade_off in trade_offs:
        for _ in range(STEPS if seen else FIRST_STEPS):
            shaped = weights.reshape(objective.shape)
            sample = objective.sample(shaped, next(good), next(bad), generator)
            seen.append(Linearisation(weights, sample))
            likely.append(float(sample.log_odds.sigmoid().mean()))
            weights = _step(seen, weights, trade_off)
            on_step(len(seen), total)
        yield weights.reshape(objective.shape).clone()
        if sum(likely[-STEPS:]) / STEPS < GONE * likely[0]:
            return


def _step(seen: Sequence[Linearisation], weights: Tensor, trade_off: float) -> Tensor:
    """The minimum, within `LARGEST_STEP`, of the surrogate that all mini-batches so far make.

    Each prompt's log-odds and divergence are linear and quadratic in the weights around the point
    where the prompt was last looked at, older ones counting less. Seeing all prompts at every step
    takes out most of the noise of mini-batches.
    """
    from scipy.optimize import Bounds, minimize

    newest = seen[-1].sample
    if not all(values.isfinite().all() for values in (newest.probes, newest.log_odds_gradients)):
        raise StudyError(
            "The gradient of the ablation weights is not finite.",
            remedy="Try dtypes = bfloat16 or float32, or search = tpe.",
        )
    start = weights.double().numpy()
    found = minimize(
        _Surrogate(seen, trade_off),
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(start - LARGEST_STEP, start + LARGEST_STEP),
        options={"maxiter": ITERATIONS},
    )
    return torch.from_numpy(found.x).to(weights.dtype)


class _Surrogate:
    """The convex function of the weights that linearisations of all prompts make.

    Args:
        seen: The mini-batches, oldest first; weighted by `DECAY` per step.
        trade_off: Of the refusal term.
    """

    def __init__(self, seen: Sequence[Linearisation], trade_off: float) -> None:
        ages = [DECAY ** (len(seen) - 1 - index) for index in range(len(seen))]
        self._trade_off = trade_off
        # Divergence: mean of g . (w - at) + (p . (w - at))^2 / 2, as slope at 0 and matrix.
        samples = [one.sample for one in seen]
        share = sum(age * len(s.probes) for age, s in zip(ages, samples, strict=True))
        count = len(seen[0].at)
        self._slope = torch.zeros(count, dtype=torch.float64)
        self._matrix = torch.zeros(count, count, dtype=torch.float64)
        for age, one in zip(ages, seen, strict=True):
            probes = one.sample.probes.double()
            matrix = probes.T @ probes * (age / share)
            slope = one.sample.divergence_gradients.double().sum(dim=0) * (age / share)
            self._matrix += matrix
            self._slope += slope - matrix @ one.at.double()
        # Refusal: log-odds are offset + gradient . w.
        self._gradients = torch.cat([s.log_odds_gradients.double() for s in samples])
        at_zero = [-one.sample.log_odds_gradients.double() @ one.at.double() for one in seen]
        self._offsets = torch.cat(at_zero) + torch.cat([s.log_odds.double() for s in samples])
        counts = torch.cat(
            [torch.full((len(s.log_odds),), age) for age, s in zip(ages, samples, strict=True)]
        ).double()
        self._shares = counts / counts.sum()

    def __call__(self, weights: Any) -> tuple[float, Any]:
        """Value and slope at weights, float64 arrays as SciPy has them; penalty included."""
        w = torch.from_numpy(weights)
        odds = self._offsets + self._gradients @ w + MARGIN
        refusal = self._trade_off * (self._shares @ functional.softplus(odds))
        bent = self._matrix @ w + PENALTY * w
        value = self._slope @ w + w @ bent / 2 + refusal
        pull = self._trade_off * self._shares * odds.sigmoid()
        return value.item(), (self._slope + bent + pull @ self._gradients).numpy()


def _batches(rows: Sequence[int], rng: random.Random) -> Iterator[list[int]]:
    """Batches without end: all rows in random order, and again when fewer than a batch are left."""
    size = min(BATCH, len(rows))
    queue: list[int] = []
    while True:
        if len(queue) < size:
            queue = rng.sample(rows, len(rows))
        yield queue[:size]
        del queue[:size]


def plan_of(
    weights: Tensor, components: Sequence[str], row_normalization: RowNormalization
) -> Plan:
    """The plan with these weights [components, layers, k], directions per layer."""
    rounded = weights.to(torch.float64).round(decimals=DIGITS).tolist()
    kernels: Mapping[str, LayerWeights] = {
        component: LayerWeights(tuple(tuple(row) for row in layers))
        for component, layers in zip(components, rounded, strict=True)
    }
    return Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels=kernels,
        row_normalization=row_normalization,
        rank=weights.shape[-1],
    )


def sweep_plans(
    model: Model,
    good: Prompts,
    bad: Prompts,
    directions: Tensor,
    *,
    protected: Prompts = (),
    row_normalization: RowNormalization,
    shows: Callable[[str], bool],
    seed: int,
    induce: bool = False,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Plan]:
    """The plans of a sweep over a model's own directions.

    Args:
        good, bad: The direction splits.
        directions: float32 [layers + 1, hidden] or [layers + 1, k, hidden].
        protected: Prompts like the bad ones on which the model is to stay as it is.
        shows: Whether a reply shows the behaviour.
        induce: Whether that is wanted.
        seed, on_step: As for `sweep`.

    Raises:
        StudyError: No layer has a direction, or the gradient is not finite.
    """
    basis = directions if directions.dim() == 3 else directions.unsqueeze(1)
    factory = EditFactory(model.writers)
    ablations = {
        writer.name: factory.ablation(writer, basis[writer.layer + 1], row_normalization)
        for writer in model.writers
        if writer.layer >= LOWEST * model.n_layers and basis[writer.layer + 1].any()
    }
    if not ablations:
        raise StudyError(
            "No layer that the sweep edits has a direction.", remedy="Set search to tpe."
        )
    objective = Objective(model, good, bad, ablations, shows, protected=protected, induce=induce)
    components = model.get_abliterable_components()
    plans = [
        plan_of(weights, components, row_normalization)
        for weights in sweep(objective, seed, on_step=on_step)
    ]
    return list(dict.fromkeys(plans))
