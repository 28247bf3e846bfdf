"""Helper functions for programs that use Heretic as a library; nothing in the package uses them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from heretic.config.tables import Datasets
from heretic.records.plan import FittedKernel, LayerWeights
from heretic.records.trial import Trial
from heretic.system.display import format_duration

if TYPE_CHECKING:
    from heretic.evaluator.evaluator import Evaluator

__all__ = [
    "batchify",
    "empty_cache",
    "format_duration",
    "get_readme_intro",
    "get_trial_parameters",
    "load_prompts",
]

Item = TypeVar("Item")


def load_prompts(datasets: Datasets) -> list[str]:
    """Read the texts of a prompt set, with its prefix and suffix.

    Raises:
        PromptError: The set cannot be read, or is empty.
    """
    from heretic.prompts import load

    return [prompt.user for prompt in load(datasets)]


def batchify(items: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """Split items into lists of `batch_size`, in order; the last list may be shorter.

    Raises:
        ValueError: `batch_size` is less than 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return [list(items[i : i + batch_size]) for i in range(0, len(items), batch_size)]


def empty_cache() -> None:
    """Collect garbage and return unused memory to the accelerator."""
    if "torch" not in sys.modules:  # no accelerator is in use
        gc.collect()
        return
    from heretic.system.machine import free_memory

    free_memory()


def get_trial_parameters(trial: Trial) -> dict[str, str]:
    """The parameters of a trial's plan, by name, as text for people."""
    plan = trial.plan
    parameters = {"direction_scope": str(plan.direction_scope)}
    if plan.direction_index is not None:
        parameters["direction_index"] = f"{plan.direction_index:.2f}"
    parameters["row_normalization"] = str(plan.row_normalization)
    if plan.rank > 1:
        parameters["rank"] = str(plan.rank)
    for component, kernel in plan.kernels:
        if isinstance(kernel, LayerWeights):
            rows = (" ".join(f"{weight:.2f}" for weight in row) for row in kernel.layers)
            parameters[f"{component}.weights"] = ", ".join(rows)
            continue
        if isinstance(kernel, FittedKernel):
            parameters[f"{component}.fit"] = kernel.fit
            parameters[f"{component}.position"] = f"{kernel.position:.2f}"
            parameters[f"{component}.scale"] = f"{kernel.scale:.2f}"
            continue
        for name in ("max_weight", "max_weight_position", "min_weight", "min_weight_distance"):
            parameters[f"{component}.{name}"] = f"{getattr(kernel, name):.2f}"
    return parameters


def get_readme_intro(base_model: str, trial: Trial, evaluator: Evaluator) -> str:
    """The introduction of a model card: the edit and the scores before and after it, Markdown."""
    from heretic.export.documents.card import get_readme_intro as intro

    return intro(base_model, trial, evaluator)
