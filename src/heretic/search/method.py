"""The search method of a run: its first plans, its search space and its sampler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from heretic.errors import HereticError, RunError, StudyError
from heretic.events import Notice, Reporter, StageFinished, StageProgress, StageStarted
from heretic.model.core import Model
from heretic.prompts import PromptSets
from heretic.records.plan import LayerWeights, Plan, RowNormalization
from heretic.records.trial import Trial
from heretic.runs.folder import RunFolder
from heretic.runs.manifest import RESTART
from heretic.search.path import PathSpace
from heretic.search.space import SearchSpace, Space, SpaceKind
from heretic.search.sweep import sweep_plans

if TYPE_CHECKING:
    from heretic.search.sampler import SamplerKind

SWEEP_PROMPTS = 128
"""Prompts of each direction split that the sweep uses. They suffice for the few weights that are
fitted, and they limit memory, since the original's distribution on each of them is kept."""

PLANS_AT_ONCE, PLANS_AT_ONCE_ON_CPU = 8, 1
"""Plans evaluated together by default: one plan's rows already keep a CPU busy."""

_log = logging.getLogger(__name__)


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


def sweep_of_run(
    options: SearchOptions,
    folder: RunFolder,
    reporter: Reporter,
    make: Callable[[], Sequence[Plan]],
) -> Sequence[Plan]:
    """Plans of the run's sweep or fit; without one, it is made if the settings ask for it.

    A failed sweep is tried again until the run has trials; after that a search keeps its method.

    Args:
        make: Makes the plans: `swept_plans`, or `heretic.search.fitting.run.fitted_plans`.

    Raises:
        StudyError: The plans cannot be made.
        RunError: The run's sweep file is damaged or cannot be written; or it is gone, and the
            sweep cannot be repeated.
    """
    if options.search not in {"auto", "gradient", "fitted"}:
        return ()
    what = "fit" if options.search == "fitted" else "gradient sweep"
    kept, trials = folder.read_sweep(), folder.read_trials()
    if kept:
        return kept
    if kept is not None and trials:
        reporter.emit(
            Notice("The gradient sweep failed when this run began, so it goes on with TPE")
        )
        return ()
    if trials:
        text = f"{folder.sweep_path} is gone: the {what} is made again"
        reporter.emit(Notice(text, level="warning"))
    plans = make()
    if trials:
        _check_same(plans, trials, folder, what)
    folder.write_sweep(plans)
    return plans


def _check_same(
    plans: Sequence[Plan], trials: Sequence[Trial], folder: RunFolder, what: str
) -> None:
    """Refuse plans that were made again if the run's trials come from others.

    Args:
        what: What made them.

    Raises:
        RunError: They do.
    """
    is_same = folder.had_sweep(plans)
    if is_same is None:  # the run is of an earlier release, which kept no digest
        tried = {trial.plan for trial in trials}
        kernels = [kernel for plan in tried for _, kernel in plan.kernels]
        swept = any(isinstance(kernel, LayerWeights) for kernel in kernels)
        is_same = any(plan in tried for plan in plans) if plans else not swept
    if not is_same:
        raise RunError(
            f"{folder.sweep_path} is gone, and the {what} gives other plans when it is made again.",
            remedy=RESTART,
        )


def swept_plans(
    options: SearchOptions,
    model: Model,
    prompts: PromptSets,
    directions: Tensor,
    *,
    seed: int,
    shows: Callable[[str], bool],
    reporter: Reporter,
) -> Sequence[Plan]:
    """Plans of a gradient sweep; if it fails and `search` is `auto`, none, with a warning.

    Args:
        prompts: The run's prompts; the direction splits and the protected prompts are used.
        directions: float32 [layers + 1, hidden] or [layers + 1, k, hidden].
        shows: Whether a reply to a bad prompt shows the behaviour.

    Raises:
        StudyError: The sweep fails, and `search` is `gradient`.
    """
    reporter.emit(StageStarted("Gradient sweep"))
    try:
        plans = sweep_plans(
            model,
            prompts.good[:SWEEP_PROMPTS],
            prompts.bad[:SWEEP_PROMPTS],
            directions,
            protected=prompts.protected[:SWEEP_PROMPTS],
            row_normalization=options.row_normalization,
            shows=shows,
            seed=seed,
            induce=options.induces,
            on_step=lambda done, total: reporter.emit(StageProgress(done, total, "steps")),
        )
    except Exception as error:  # kernels without a backward pass may raise any error
        reason = (
            str(error) if isinstance(error, HereticError) else f"{type(error).__name__}: {error}"
        )
        if options.search == "gradient":
            raise StudyError(
                f"The gradient sweep failed: {reason}", remedy="Set search to tpe or auto."
            ) from error
        _log.warning("The gradient sweep failed on %s", model.options.model, exc_info=True)
        reporter.emit(Notice(f"The gradient sweep failed, TPE is used: {reason}", level="warning"))
        plans = []
    reporter.emit(StageFinished(f"{len(plans)} plans"))
    return plans
