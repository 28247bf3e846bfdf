"""Gradient search: a sweep over trade-offs between damage and refusal, one plan for each.

Minimises, over one ablation weight per component, layer and direction,

    KL + trade_off * mean softplus(log-odds of refusal + MARGIN) + penalty

by damped Gauss-Newton steps on mini-batches (Levenberg 1944; Marquardt 1963), from the cheapest
trade-off to the dearest, each starting where the one before ended. There are few weights, tens to
hundreds, so that curvature is a small matrix: it is averaged over steps, as Adam does with its
diagonal. The penalty keeps weights small, and so edits few.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heretic.errors import StudyError
from heretic.model import Model
from heretic.model.editing import EditFactory
from heretic.prompts import Prompt
from heretic.records import Plan, RowNormalization, Weights
from heretic.search.objective import Objective, Sample

TRADE_OFFS = tuple(0.01 * 1.8**power for power in range(12))
"""Nats of KL divergence that one unit of the refusal term is worth, in the order of the sweep."""

GONE = 0.02
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
"""Of the averages of curvature, per step."""

LARGEST_STEP = 1.0
"""No weight moves further in one step: beyond, the quadratic model is not to be trusted."""

LOWEST = 0.3
"""Part of the layers, from below, that is left alone: directions are not formed there yet, and what
is not edited need not be differentiated."""

DIGITS = 4
"""Of a weight in a plan: more than the search can tell apart."""


@dataclass(slots=True)
class State:
    """Where a sweep stands.

    Attributes:
        weights: [components, layers, k].
        curvatures: Averages of the two terms' Gauss-Newton matrices, [weights, weights].
        steps: Steps taken.
    """

    weights: Tensor
    curvatures: tuple[Tensor, Tensor] | None = None
    steps: int = 0


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
    """
    state = State(torch.zeros(objective.shape))
    likely: list[float] = []
    good = _batches(range(objective.good), random.Random(seed))  # noqa: S311 - not a secret
    bad = _batches(objective.bad, random.Random(seed + 1))  # noqa: S311
    generator = torch.Generator().manual_seed(seed)
    total = FIRST_STEPS + STEPS * (len(trade_offs) - 1)
    for trade_off in trade_offs:
        for _ in range(STEPS if state.steps else FIRST_STEPS):
            sample = objective.sample(state.weights, next(good), next(bad), generator)
            likely.append(float(sample.log_odds.sigmoid().mean()))
            _step(state, sample, trade_off)
            on_step(state.steps, total)
        yield state.weights.clone()
        if sum(likely[-STEPS:]) / STEPS < GONE * likely[0]:
            return


def _step(state: State, sample: Sample, trade_off: float) -> None:
    """One damped Gauss-Newton step.

    Raises:
        StudyError: It is not finite.
    """
    flat = state.weights.flatten()
    share = torch.sigmoid(sample.log_odds + MARGIN).unsqueeze(-1)  # of softplus, the derivative
    gradients = sample.log_odds_gradients
    bend = share * (1 - share)
    state.curvatures = _averaged(
        state.curvatures,
        (sample.divergence_curvature, (bend * gradients).T @ gradients / len(gradients)),
    )
    divergence, refusal = state.curvatures
    slope = sample.divergence_gradient + trade_off * (share * gradients).mean(dim=0)
    matrix = divergence + trade_off * refusal + PENALTY * torch.eye(len(flat))
    move = -torch.linalg.solve(matrix, slope + PENALTY * flat)
    move = move * min(1.0, LARGEST_STEP / max(float(move.abs().max()), LARGEST_STEP))
    if not move.isfinite().all():
        raise StudyError(
            "The gradient of the ablation weights is not finite.",
            remedy="Try dtypes = bfloat16 or float32, or search = tpe.",
        )
    state.weights = (flat + move).reshape(state.weights.shape)
    state.steps += 1


def _averaged(
    before: tuple[Tensor, Tensor] | None, new: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    if before is None:
        return new
    first, second = (DECAY * old + (1 - DECAY) * n for old, n in zip(before, new, strict=True))
    return first, second


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
    good: Sequence[Prompt],
    bad: Sequence[Prompt],
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
