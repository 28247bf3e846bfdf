"""Gradient search: a sweep over trade-offs between damage and refusal, one plan for each.

Minimises, over one ablation weight per component, layer and direction,

    KL + trade_off * mean softplus(log-odds of refusal + margin) + penalty

by Gauss-Newton steps on mini-batches, from the smallest trade-off to the largest, each starting
where the one before ended. There are only tens to hundreds of weights, so the curvature is a small
matrix, and derivatives from earlier mini-batches are used again (cf. the stochastic Newton method
by Kovalev, Mishchenko & Richtarik 2019, arXiv 1912.01597). The penalty keeps the weights small, and
with them the edit.
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


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Figures of the method, which no user needs to set.

    Attributes:
        trade_offs: Nats of KL divergence that one unit of the refusal term is worth, in the order
            of the sweep.
        gone: The sweep ends when the average probability of refusal (of its opposite, when
            inducing) is below this fraction of the first one: larger trade-offs would cost more and
            gain nothing.
        first_steps: Steps at the first trade-off.
        steps: Steps at each later trade-off.
        batch: Number of good prompts, and of bad prompts, per step.
        margin: Refusal is pushed down until its odds are well below 1 to e^margin (12% at 2).
        penalty: Half of this, times the sum of squared weights, is added to the objective, in nats.
        decay: Factor by which a linearisation's weight shrinks at every later step.
        iterations: Most iterations to minimise the convex function of all linearisations.
        largest_step: Largest change of a weight in one step: further away, linearisations are not
            reliable.
        lowest: Share of the layers, from the first on, that is not edited: directions are not
            formed there yet, and layers without edits need no derivatives.
    """

    trade_offs: Sequence[float] = tuple(0.01 * 1.8**power for power in range(12))
    gone: float = 0.005
    first_steps: int = 4
    steps: int = 2
    batch: int = 16
    margin: float = 2.0
    penalty: float = 0.01
    decay: float = 0.8
    iterations: int = 500
    largest_step: float = 1.0
    lowest: float = 0.3


DEFAULTS = SweepOptions()

DIGITS = 4
"""Decimals of a weight in a plan: more than the search can distinguish."""


@dataclass(frozen=True, slots=True)
class Linearisation:
    """The objective on one mini-batch, linearised at given weights.

    Attributes:
        at: These weights, flat, [weights].
        sample: Values and derivatives there.
    """

    at: Tensor
    sample: Sample


def sweep(
    objective: Objective,
    seed: int,
    options: SweepOptions = DEFAULTS,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Tensor]:
    """Yield the best weights [components, layers, k] at each trade-off, in order.

    The sweep ends early once hardly any refusal is left.

    Args:
        seed: Seed of mini-batches and curvature probes.
        on_step: Called with (steps done, most steps).

    Raises:
        StudyError: The gradient is not finite.
    """
    weights = torch.zeros(objective.shape).flatten()
    seen: list[Linearisation] = []
    likely: list[float] = []
    rows, size = range(objective.good), options.batch
    good = _batches(rows, size, random.Random(seed))  # noqa: S311 - not a secret
    bad = _batches(objective.bad, size, random.Random(seed + 1))  # noqa: S311
    generator = torch.Generator().manual_seed(seed)
    total = options.first_steps + options.steps * (len(options.trade_offs) - 1)
    for trade_off in options.trade_offs:
        for _ in range(options.steps if seen else options.first_steps):
            shaped = weights.reshape(objective.shape)
            sample = objective.sample(shaped, next(good), next(bad), generator)
            seen.append(Linearisation(weights, sample))
            likely.append(float(sample.log_odds.sigmoid().mean()))
            weights = _step(seen, weights, trade_off, options)
            on_step(len(seen), total)
        yield weights.reshape(objective.shape).clone()
        if sum(likely[-options.steps :]) / options.steps < options.gone * likely[0]:
            return


def _step(
    seen: Sequence[Linearisation], weights: Tensor, trade_off: float, options: SweepOptions
) -> Tensor:
    """Weights that minimise the surrogate of all mini-batches so far, within the largest step.

    In the surrogate each prompt's log-odds are linear in the weights, and its divergence quadratic,
    around the weights where they were computed; older mini-batches count less. Using all prompts at
    every step removes most of the noise of mini-batches.

    Raises:
        StudyError: The gradient is not finite.
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
        _Surrogate(seen, trade_off, options),
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(start - options.largest_step, start + options.largest_step),
        options={"maxiter": options.iterations},
    )
    return torch.from_numpy(found.x).to(weights.dtype)


class _Surrogate:
    """The convex function of the weights that all linearisations make up.

    Args:
        seen: The mini-batches, oldest first; their weight shrinks by `decay` per step.
        trade_off: Factor of the refusal term.
    """

    def __init__(
        self, seen: Sequence[Linearisation], trade_off: float, options: SweepOptions
    ) -> None:
        self._options = options
        self._trade_off = trade_off
        ages = [options.decay ** (len(seen) - 1 - index) for index in range(len(seen))]
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
        """Value and gradient at weights [weights], float64 NumPy arrays, penalty included."""
        w = torch.from_numpy(weights)
        odds = self._offsets + self._gradients @ w + self._options.margin
        refusal = self._trade_off * (self._shares @ functional.softplus(odds))
        bent = self._matrix @ w + self._options.penalty * w
        value = self._slope @ w + w @ bent / 2 + refusal
        pull = self._trade_off * self._shares * odds.sigmoid()
        return value.item(), (self._slope + bent + pull @ self._gradients).numpy()


def _batches(rows: Sequence[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Endless batches: rows in random order, drawn anew when fewer than a batch are left."""
    size = min(size, len(rows))
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
    options: SweepOptions = DEFAULTS,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Plan]:
    """The plans of a sweep along a model's directions.

    Args:
        good, bad: Prompts of the direction splits.
        directions: float32 [layers + 1, hidden] or [layers + 1, k, hidden].
        protected: Prompts that trigger the behaviour, but on which the model should not change.
        shows: Whether a reply shows the behaviour.
        induce: Whether the behaviour is to be strengthened, not removed.
        seed, options, on_step: See `sweep`.

    Raises:
        StudyError: No layer has a direction, the gradient is not finite, or see `Objective`.
    """
    basis = directions if directions.dim() == 3 else directions.unsqueeze(1)
    factory = EditFactory(model.writers)
    ablations = {
        writer.name: factory.ablation(writer, basis[writer.layer + 1], row_normalization)
        for writer in model.writers
        if writer.layer >= options.lowest * model.n_layers and basis[writer.layer + 1].any()
    }
    if not ablations:
        raise StudyError(
            "No layer that the sweep edits has a direction.", remedy="Set search to tpe."
        )
    objective = Objective(model, good, bad, ablations, shows, protected=protected, induce=induce)
    components = model.get_abliterable_components()
    plans = [
        plan_of(weights, components, row_normalization)
        for weights in sweep(objective, seed, options, on_step)
    ]
    return list(dict.fromkeys(plans))
