"""The search space around a gradient sweep, or a fit: points on its path and near it.

The plans lie on a curve through weight space, from hardly edited to hardly refusing. Its
objective is an approximation (first tokens of the direction splits), so the best plans by full
evaluation lie near the curve, not on it. Only a few parameters are left to search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from heretic.method.fits import Fit
from heretic.records.plan import AnyKernel, FittedKernel, LayerWeights, Plan
from heretic.search.space import Range, Suggester

POSITION = "position"
SCALES = Range(0.6, 1.5)
"""Factors from the sweep's weights to a component's weights."""

BEFORE = -0.9
"""First position on a fit: places before its first point have that point's vectors, scaled down. A
sweep begins with hardly any edit; the first point of a fit may leave few refusals already."""


class PathSpace:
    """Plans near those of a sweep.

    Args:
        plans: The plans in order. All have free-form kernels of the same components, or all are
            places on one fit.

    Attributes:
        ranges: Parameter name to range, in the order in which they are suggested.
        choices: Categorical parameters; there are none.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = tuple(plans)
        self._components = tuple(name for name, _ in plans[0].kernels)
        self.choices: dict[str, tuple[str, ...]] = {}
        first = BEFORE if plans[0].fits else 0.0
        self.ranges = {POSITION: Range(first, float(len(plans) - 1))}
        self.ranges |= {f"{component}.scale": SCALES for component in self._components}

    def suggest(self, trial: Suggester) -> Plan:
        """A plan from the parameters that `trial` (an `optuna.Trial`) draws."""
        return self.plan(
            {
                name: trial.suggest_float(name, bounds.low, bounds.high)
                for name, bounds in self.ranges.items()
            }
        )

    def plan(self, params: Mapping[str, str | float]) -> Plan:
        """The plan that parameter values stand for."""
        place = float(params[POSITION])
        position, shrunk = max(place, 0.0), 1 + min(place, 0.0)
        lower = min(int(position), max(len(self.plans) - 2, 0))
        upper = min(lower + 1, len(self.plans) - 1)
        kernels = tuple(
            (name, _mixed(first, second, position - lower, shrunk * float(params[f"{name}.scale"])))
            for (name, first), (_, second) in zip(
                self.plans[lower].kernels, self.plans[upper].kernels, strict=True
            )
        )
        return replace(self.plans[lower], kernels=kernels)

    def plan_to_params(self, plan: Plan) -> dict[str, str | float] | None:
        """Parameter values of a plan of the sweep itself; None for any other."""
        if plan not in self.plans:
            return None
        params: dict[str, str | float] = dict.fromkeys(self.ranges, 1.0)
        params[POSITION] = float(self.plans.index(plan))
        return params


def _mixed(
    first: AnyKernel, second: AnyKernel, share: float, scale: float
) -> LayerWeights | FittedKernel:
    """The kernel at `share` of the way from the first to the second, times `scale`."""
    if isinstance(first, FittedKernel):
        assert isinstance(second, FittedKernel)
        position = (1 - share) * first.position + share * second.position
        return FittedKernel(first.fit, position, scale * first.scale)
    assert isinstance(first, LayerWeights)
    assert isinstance(second, LayerWeights)
    return LayerWeights(
        tuple(
            # This form gives both ends exactly, to the last bit.
            tuple(scale * ((1 - share) * a + share * b) for a, b in zip(one, other, strict=True))
            for one, other in zip(first.layers, second.layers, strict=True)
        )
    )


def path_plans(fit: Fit) -> list[Plan]:
    """A plan for each point of a fit's path, with row normalization `none`."""
    return [
        Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={name: FittedKernel(fit.digest, float(point)) for name in fit.components},
            row_normalization="none",
            rank=fit.rank,
        )
        for point in range(fit.points)
    ]
