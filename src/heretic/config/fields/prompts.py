"""The group Prompts of the settings."""

from __future__ import annotations

from typing import Annotated

from heretic.config.declaration import FieldGroup, Optionally, Texts, setting
from heretic.config.tables import Datasets, DatasetSpecification


def _prompts(dataset: str, split: str, label: str, color: str) -> DatasetSpecification:
    return DatasetSpecification(
        dataset=dataset, split=split, residual_plot_label=label, residual_plot_color=color
    )


def _good(split: str) -> DatasetSpecification:
    return _prompts("mlabonne/harmless_alpaca", split, "Good prompts", "royalblue")


def _bad(split: str) -> DatasetSpecification:
    return _prompts("mlabonne/harmful_behaviors", split, "Bad prompts", "darkorange")


class PromptsFields(FieldGroup):
    """The prompt sets that directions and scores come from."""

    good_prompts: Datasets = setting(
        _good("train[:400]"), "Prompts", "Prompts that do not trigger the behaviour (directions)."
    )
    bad_prompts: Datasets = setting(
        _bad("train[:400]"), "Prompts", "Prompts that trigger the behaviour (directions)."
    )
    good_evaluation_prompts: Datasets = setting(
        _good("test[:100]"), "Prompts", "Prompts on which the model should stay as it was."
    )
    bad_evaluation_prompts: Datasets = setting(
        _bad("test[:100]"), "Prompts", "Prompts on which the behaviour is counted."
    )
    protected_prompts: Annotated[Datasets | None, Optionally] = setting(
        None,
        "Prompts",
        "Prompts that resemble the bad ones, but on which the model should stay as it was. What "
        "they have in common with the bad prompts is left out of the directions, and the gradient "
        "sweep adds their divergence to that of the good prompts. With max_rank = 2, what "
        "distinguishes them from the good prompts is a second direction, which only the sweep "
        "uses.",
        example={"dataset": "mlabonne/harmful_behaviors", "split": "train[:100]"},
    )
    topic_prompts: Annotated[Datasets | None, Optionally] = setting(
        None,
        "Prompts",
        "Prompts about the topic of the bad ones that do not trigger the behaviour. Only `heretic "
        "validate` uses them: a plan that works with their direction removes the topic.",
        example={"dataset": "topic.txt", "split": "train[:100]"},
        scores=False,
    )
    keep: Texts = setting(
        (),
        "Prompts",
        "Categories of bad prompts to spare, by the `category_column` of the bad sets: the model "
        "should go on showing the behaviour there. Their prompts for directions join the protected "
        "prompts; the others are left out of the search and of its figures, and how many of them "
        "still show the behaviour is reported apart.",
        example=["medical"],
        as_before=[],
    )
    good_held_out_prompts: Annotated[Datasets | None, Optionally] = setting(
        None,
        "Prompts",
        "Good prompts on which only the chosen trial is scored. Unset: rows of the same data sets, "
        "after the rows that were used.",
        example={"dataset": "mlabonne/harmless_alpaca", "split": "test[100:200]"},
        scores=False,
    )
    bad_held_out_prompts: Annotated[Datasets | None, Optionally] = setting(
        None,
        "Prompts",
        "Bad prompts on which only the chosen trial is scored. Unset: as for "
        "good_held_out_prompts.",
        example={"dataset": "mlabonne/harmful_behaviors", "split": "test[100:200]"},
        scores=False,
    )
