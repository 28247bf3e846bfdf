"""The search method of a run: its search space and its sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heretic.model.core import Model
from heretic.records.plan import Plan, RowNormalization
from heretic.search.path import PathSpace
from heretic.search.space import SearchSpace, Space, SpaceKind

if TYPE_CHECKING:
    from heretic.search.sampler import SamplerKind

PLANS_AT_ONCE, PLANS_AT_ONCE_ON_CPU = 8, 1
"""Plans evaluated together by default: one plan's rows already keep a CPU busy."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How the user wants to search. The fields are the settings of the same names."""

    search: str
    search_space: SpaceKind
    row_normalization: RowNormalization
    max_rank: int
    goal: str
    n_startup_trials: int
    plans_at_once: int

    @property
    def induces(self) -> bool:
        """Whether the behaviour is to be strengthened, not removed."""
        return self.goal == "induce"


@dataclass(frozen=True, slots=True)
class Method:
    """How a run is searched.

    Attributes:
        space: Space in which the sampler proposes plans.
        plans: Plans that are evaluated first.
        sampler: Name of the sampler.
        n_startup_trials: Trials before the sampler learns.
        plans_at_once: How many plans are proposed and evaluated together.
    """

    space: Space
    plans: Sequence[Plan]
    sampler: SamplerKind
    n_startup_trials: int
    plans_at_once: int


def choose_method(
    options: SearchOptions, model: Model, sweep: Sequence[Plan], *, has_protected: bool
) -> Method:
    """The method that the options ask for.

    Args:
        sweep: Plans of the run's gradient sweep; empty without a sweep.
        has_protected: Whether the run has protected prompts.
    """
    on_cpu = model.device.type == "cpu"
    at_once = options.plans_at_once or (PLANS_AT_ONCE_ON_CPU if on_cpu else PLANS_AT_ONCE)
    if sweep:
        # The sampler begins to learn from the sweep's own plans. Beside a fit there is the ablation
        # that it learned from: what is no better than that is not offered.
        path = [plan for plan in sweep if plan.fits] or list(sweep)
        others = [plan for plan in sweep if plan not in path]
        return Method(PathSpace(path), [*_halving(path), *others], "gp", len(path), at_once)
    kernels = SearchSpace(
        model.n_layers,
        tuple(model.get_abliterable_components()),
        options.search_space,
        options.row_normalization,
        # One weight for several directions would also remove the behaviour on protected prompts.
        1 if has_protected else options.max_rank,
        induce=options.induces,
    )
    sampler: SamplerKind = "gp" if options.search == "gp" else "tpe"
    return Method(kernels, (), sampler, options.n_startup_trials, at_once)


def _halving(plans: Sequence[Plan]) -> list[Plan]:
    """The last plan, the middle one, those halfway between, and so on.

    This covers the whole front early and refines it later, so a search that is cut short also gives
    a complete front.
    """
    last = len(plans) - 1
    order = [last]
    step = len(plans)
    while step > 1:
        step = (step + 1) // 2
        order += range(last, -1, -step)
    return [plans[i] for i in dict.fromkeys([*order, 0])]
