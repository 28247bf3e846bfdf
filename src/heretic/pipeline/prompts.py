"""The prompt sets of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from heretic import prompts as prompt_sets
from heretic.config.settings import Settings
from heretic.evaluator.evaluator import EvaluationPrompts
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.prompts import Prompt

FEWEST_HELD_OUT = 10
"""With fewer prompts of a kind that are merely left over, a figure says nothing."""


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Two splits each of good and bad prompts, and a third one where there are prompts left.

    Attributes:
        good, bad: What directions are found on.
        protected: What is like the bad ones, and to be spared.
        evaluation: What trials are scored on.
        held_out: What neither has seen; the chosen trial is scored on it.
    """

    good: Sequence[Prompt]
    bad: Sequence[Prompt]
    evaluation: EvaluationPrompts
    held_out: EvaluationPrompts | None = None
    protected: Sequence[Prompt] = ()


def load_prompts(
    settings: Settings, reporter: Reporter, *, with_held_out: bool = True
) -> PromptSets:
    """Read the prompt sets; splits that share prompts are reported.

    Args:
        with_held_out: Whether to look for held-out prompts too.

    Raises:
        PromptError: A set cannot be read or is empty.
    """
    reporter.emit(StageStarted("Loading prompts"))
    system = settings.system_prompt
    sets = PromptSets(
        good=prompt_sets.load(settings.good_prompts, system),
        bad=prompt_sets.load(settings.bad_prompts, system),
        evaluation=EvaluationPrompts.load(settings),
    )
    if settings.protected_prompts is not None:
        sets = replace(sets, protected=prompt_sets.load(settings.protected_prompts, system))
    if with_held_out:
        sets = replace(sets, held_out=_held_out(settings, sets))
    evaluation = sets.evaluation
    scored = [prompt for rows in evaluation.by_name().values() for prompt in rows]
    for name, first, second in (
        ("good", sets.good, evaluation.good),
        ("bad", sets.bad, evaluation.bad),
        ("protected", sets.protected, scored),
    ):
        shared = prompt_sets.shared_prompts(first, second)
        if shared:
            reporter.emit(
                Notice(
                    f"{len(shared)} {name} prompts are in both the direction and the evaluation "
                    "split: scores on them flatter the edit.",
                    level="warning",
                )
            )
    reporter.emit(
        StageFinished(
            f"{len(sets.good)} good and {len(sets.bad)} bad for directions, "
            + (f"{len(sets.protected)} protected, " if sets.protected else "")
            + f"{len(evaluation.good)} and {len(evaluation.bad)} for evaluation"
            + (f", {_held_out_text(sets.held_out)}" if with_held_out else "")
        )
    )
    return sets


def _held_out(settings: Settings, sets: PromptSets) -> EvaluationPrompts | None:
    """The third split, if both kinds have prompts enough for it."""
    evaluation, system = sets.evaluation, settings.system_prompt
    good = prompt_sets.held_out(
        settings.good_held_out_prompts,
        [
            (settings.good_evaluation_prompts, evaluation.good),
            (settings.good_prompts, sets.good),
        ],
        system,
        sets.protected,
    )
    bad = prompt_sets.held_out(
        settings.bad_held_out_prompts,
        [(settings.bad_evaluation_prompts, evaluation.bad), (settings.bad_prompts, sets.bad)],
        system,
        sets.protected,
    )
    named = settings.good_held_out_prompts, settings.bad_held_out_prompts
    for rows, specification in zip((good, bad), named, strict=True):
        # However few, prompts that were named are what the user wants to see.
        if len(rows) < (FEWEST_HELD_OUT if specification is None else 1):
            return None
    return EvaluationPrompts(good, bad, evaluation.more)


def _held_out_text(prompts: EvaluationPrompts | None) -> str:
    if prompts is None:
        return "none held out"
    return f"{len(prompts.good)} and {len(prompts.bad)} held out"
