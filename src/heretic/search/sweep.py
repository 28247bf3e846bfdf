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

import torch
from torch import Tensor

from heretic.errors import StudyError
from heretic.model import Model
from heretic.model.core import Prompts
from heretic.model.editing import EditFactory
from heretic.records import Plan, RowNormalization, Weights
from heretic.search.objective import Objective, Sample

TRADE_OFFS = tuple(0.01 * 1.8**power for power in range(12))
"""Nats of KL divergence that one unit of the refusal term is worth, in the order of the sweep."""

GONE = 0.005
"""The sweep ends where refusal is this much as likely as it was, on average: what follows costs
more and gains nothing."""

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

NEWTON_STEPS = 12
"""At most, to the minimum of the model that all linearisations make."""

LARGEST_STEP = 1.0
"""No weight moves further in one step: beyond, the quadratic model is not to be trusted."""

LOWEST = 0.3
"""Part of the layers, from below, that is left alone: directions are not formed there yet, and what
is not edited need not be differentiated."""

DIGITS = 4
"""Of a weight in a plan: more than the search can tell apart."""


@dataclass(frozen=True, slots=True)
class Part:
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
    parts: list[Part] = []
    likely: list[float] = []
    good = _batches(range(objective.good), random.Random(seed))  # noqa: S311 - not a secret
    bad = _batches(objective.bad, random.Random(seed + 1))  # noqa: S311
    generator = torch.Generator().manual_seed(seed)
    total = FIRST_STEPS + STEPS * (len(trade_offs) - 1)
    for trade_off in trade_offs:
        for _ in range(STEPS if parts else FIRST_STEPS):
            shaped = weights.reshape(objective.shape)
            sample = objective.sample(shaped, next(good), next(bad), generator)
            parts.append(Part(weights, sample))
            likely.append(float(sample.log_odds.sigmoid().mean()))
            weights = _step(parts, weights, trade_off)
            on_step(len(parts), total)
        yield weights.reshape(objective.shape).clone()
        if sum(likely[-STEPS:]) / STEPS < GONE * likely[0]:
            return


def _step(parts: Sequence[Part], weights: Tensor, trade_off: float) -> Tensor:
    """The minimum of the model that all mini-batches so far make, or as far towards it as is safe.

    Each prompt's log-odds and divergence are linear and quadratic in the weights around the point
    where the prompt was last looked at, older ones counting less. Seeing all prompts at every step
    takes out most of the noise of mini-batches. The model is convex: Newton's method finds its
    minimum.
    """
    model = _Model(parts, trade_off)
    found = weights
    for _ in range(NEWTON_STEPS):
        slope, curvature = model.derivatives(found)
        move = _shortened(-torch.linalg.solve(curvature, slope))
        found = found + move
        if move.abs().max() < 1e-3:
            break
    step = found - weights
    if not step.isfinite().all():
        raise StudyError(
            "The gradient of the ablation weights is not finite.",
            remedy="Try dtypes = bfloat16 or float32, or search = tpe.",
        )
    return weights + _shortened(step)


def _shortened(step: Tensor) -> Tensor:
    """The step, or as much of it as moves no weight by more than `LARGEST_STEP`."""
    return step * min(1.0, LARGEST_STEP / max(float(step.abs().max()), LARGEST_STEP))


class _Model:
    """The convex model of the objective that linearisations of all prompts make.

    Args:
        parts: The mini-batches, oldest first; weighted by `DECAY` per step.
        trade_off: Of the refusal term.
    """

    def __init__(self, parts: Sequence[Part], trade_off: float) -> None:
        ages = [DECAY ** (len(parts) - 1 - index) for index in range(len(parts))]
        samples = [part.sample for part in parts]
        self._trade_off = trade_off
        # Divergence: mean of g . (w - at) + (p . (w - at))^2 / 2, as slope at 0 and matrix.
        share = sum(age * len(s.probes) for age, s in zip(ages, samples, strict=True))
        self._slope = torch.zeros_like(parts[0].at)
        self._matrix = torch.zeros(len(self._slope), len(self._slope))
        for age, part in zip(ages, parts, strict=True):
            probes = part.sample.probes
            matrix = probes.T @ probes * (age / share)
            self._matrix += matrix
            self._slope += part.sample.divergence_gradients.sum(dim=0) * (age / share)
            self._slope -= matrix @ part.at
        # Refusal: log-odds are offset + gradient . w.
        self._gradients = torch.cat([s.log_odds_gradients for s in samples])
        self._offsets = torch.cat(
            [s.log_odds - s.log_odds_gradients @ p.at for p, s in zip(parts, samples, strict=True)]
        )
        counts = torch.cat(
            [torch.full_like(s.log_odds, age) for age, s in zip(ages, samples, strict=True)]
        )
        self._shares = counts / counts.sum()

    def derivatives(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and curvature of the whole objective, penalty included."""
        likely = torch.sigmoid(self._offsets + self._gradients @ weights + MARGIN)
        pull = self._trade_off * self._shares * likely
        bend = (pull * (1 - likely)).unsqueeze(-1) * self._gradients
        penalty = PENALTY * torch.eye(len(weights))
        slope = self._slope + self._matrix @ weights + pull @ self._gradients + PENALTY * weights
        return slope, self._matrix + bend.T @ self._gradients + penalty


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
    kernels: Mapping[str, Weights] = {
        component: Weights(tuple(tuple(row) for row in layers))
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
    row_normalization: RowNormalization,
    shows: Callable[[str], bool],
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Plan]:
    """The plans of a sweep over a model's own directions.

    Args:
        good, bad: The direction splits.
        directions: float32 [layers + 1, hidden] or [layers + 1, k, hidden].
        shows: Whether a reply shows the behaviour.
        seed, on_step: As for `sweep`.
    """
    basis = directions if directions.dim() == 3 else directions.unsqueeze(1)
    factory = EditFactory(model.writers)
    ablations = {
        writer.name: factory.ablation(writer, basis[writer.layer + 1], row_normalization)
        for writer in model.writers
        if writer.layer >= LOWEST * model.n_layers and basis[writer.layer + 1].any()
    }
    objective = Objective(model, good, bad, ablations, shows)
    components = model.get_abliterable_components()
    return [
        plan_of(weights, components, row_normalization)
        for weights in sweep(objective, seed, on_step=on_step)
    ]
