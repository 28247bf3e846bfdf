"""The search space: named parameters, and the plan they stand for (docs/how-it-works.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from heretic.records.plan import MLP, Kernel, Plan, RowNormalization

SpaceKind = Literal["default", "wide"]

SCOPE = "direction_scope"
INDEX = "direction_index"
RANK = "rank"


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval of real numbers."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """The number halfway between the ends."""
        return (self.low + self.high) / 2

    def clamp(self, value: float) -> float:
        """The nearest number in the range."""
        return min(max(value, self.low), self.high)

    def holds(self, value: float, tolerance: float = 1e-9) -> bool:
        """Whether `value` is in the range, apart from rounding."""
        return abs(self.clamp(value) - value) <= tolerance


class Space(Protocol):
    """The part of a search space that samplers use.

    Attributes:
        ranges: Ranges of the real parameters by name.
        choices: Values of the categorical parameters by name.
    """

    ranges: dict[str, Range]
    choices: dict[str, tuple[str, ...]]

    def suggest(self, trial: Suggester) -> Plan:
        """A plan from the parameters that `trial` draws."""

    def plan_to_params(self, plan: Plan) -> dict[str, str | float] | None:
        """Parameter values that stand for `plan`, or None if it lies outside this space."""


class Suggester(Protocol):
    """The part of an `optuna.Trial` that `suggest` uses."""

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """Draw a number from [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """Draw one of the choices."""


class SearchSpace:
    """Ranges of all parameters, in an order that does not depend on the order of components.

    Args:
        n_layers: Number of layers; the last layer has index `n_layers - 1`.
        components: Components to search; any but `mlp.down_proj` has the ranges of attention.
        kind: `default`, or `wide` with larger weights, all positions and the scope `mean`.
        row_normalization: The edit variant of all plans.
        max_rank: Largest number of directions that a plan may remove; searched if above 1.
        induce: Whether weights are negative, to strengthen the behaviour.

    Attributes:
        ranges: Parameter name to range, in the order in which they are suggested.
        choices: The direction scopes to choose from, and the ranks if there are several.
    """

    def __init__(
        self,
        n_layers: int,
        components: Iterable[str],
        kind: SpaceKind = "default",
        row_normalization: RowNormalization = "full",
        max_rank: int = 1,
        induce: bool = False,
    ) -> None:
        self.n_layers = n_layers
        self._sign = -1.0 if induce else 1.0
        self.components = tuple(sorted(set(components)))
        self.kind: SpaceKind = kind
        self.row_normalization: RowNormalization = row_normalization
        if n_layers < 1 or not self.components:
            raise ValueError("a search space needs at least one layer and one component")
        wide = kind == "wide"
        scopes = ("global", "per layer", "mean") if wide else ("global", "per layer")
        ranks = tuple(str(rank) for rank in range(1, max_rank + 1))
        self.choices: dict[str, tuple[str, ...]] = {SCOPE: scopes}
        if max_rank > 1:
            self.choices[RANK] = ranks
        last = n_layers - 1
        self.ranges: dict[str, Range] = {INDEX: Range(0.4 * last, 0.9 * last)}
        for component in self.components:
            weight = Range(-0.25, 1.5) if component == MLP else Range(0.8, 1.5)
            position = Range(0.6 * last, float(last))
            self.ranges |= {
                f"{component}.max_weight": Range(0.0, 5.0) if wide else weight,
                f"{component}.max_weight_position": Range(0.0, float(last)) if wide else position,
                f"{component}.min_weight": Range(0.0, 1.0),
                f"{component}.min_weight_distance": Range(1.0, max(0.6 * last, 1.0)),
            }

    def suggest(self, trial: Suggester) -> Plan:
        """A plan from the parameters that `trial` (an `optuna.Trial`) draws."""
        params: dict[str, str | float] = {
            name: trial.suggest_categorical(name, choices) for name, choices in self.choices.items()
        }
        for name, bounds in self.ranges.items():
            params[name] = trial.suggest_float(name, bounds.low, bounds.high)
        return self.plan(params)

    def plan(self, params: Mapping[str, str | float]) -> Plan:
        """The plan that parameter values stand for."""
        return Plan.create(
            direction_scope=params[SCOPE],  # type: ignore[arg-type]  # checked by Plan
            direction_index=float(params[INDEX]),
            kernels={name: self._kernel(name, params) for name in self.components},
            row_normalization=self.row_normalization,
            rank=int(params.get(RANK, 1)),
        )

    def plan_to_params(self, plan: Plan) -> dict[str, str | float] | None:
        """Parameter values that stand for `plan`, or None if it lies outside this space.

        A parameter that the plan does not fix (the index under other scopes than `global`, the
        shape of a kernel without weight) gets the middle of its range.
        """
        kernels = {name: k for name, k in plan.kernels if isinstance(k, Kernel)}
        params: dict[str, str | float] = {SCOPE: plan.direction_scope, RANK: str(plan.rank)}
        if (
            plan.direction_scope not in self.choices[SCOPE]
            or str(plan.rank) not in self.choices.get(RANK, ("1",))
            or plan.row_normalization != self.row_normalization
            or len(kernels) != len(plan.kernels)
            or set(kernels) != set(self.components)
        ):
            return None
        params = {name: params[name] for name in self.choices}
        index = plan.direction_index
        values: dict[str, float] = {INDEX: self.ranges[INDEX].middle if index is None else index}
        for component, kernel in kernels.items():
            values |= self._kernel_params(component, kernel)
        for name, bounds in self.ranges.items():
            if not bounds.holds(values[name]):
                return None
            params[name] = bounds.clamp(values[name])
        return params

    def _kernel_params(self, component: str, kernel: Kernel) -> dict[str, float]:
        weight, fraction = self._sign * kernel.max_weight, 0.5
        if weight > 0:
            fraction = self._sign * kernel.min_weight / weight
        elif weight < 0 or kernel.min_weight != 0:
            weight = float("inf")  # outside of every range
        else:
            weight = min(self.ranges[f"{component}.max_weight"].low / 2, 0.0)
        return {
            f"{component}.max_weight": weight,
            f"{component}.max_weight_position": kernel.max_weight_position,
            f"{component}.min_weight": fraction,
            f"{component}.min_weight_distance": kernel.min_weight_distance,
        }

    def _kernel(self, component: str, params: Mapping[str, str | float]) -> Kernel:
        max_weight = self._sign * max(0.0, float(params[f"{component}.max_weight"]))
        return Kernel(
            max_weight=max_weight,
            max_weight_position=float(params[f"{component}.max_weight_position"]),
            min_weight=max_weight * float(params[f"{component}.min_weight"]),
            min_weight_distance=float(params[f"{component}.min_weight_distance"]),
        )
