"""Read the prompt sets of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from heretic import prompts as prompt_sets
from heretic.config.settings import Settings
from heretic.config.tables import each_of
from heretic.errors import PromptError, SettingsError
from heretic.evaluator.library import evaluation_prompts
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.prompts import EvaluationPrompts, PromptSets
from heretic.prompts.spared import check_kept, remarks_on_spared, spare
from heretic.scorers import Scorer, load_scorers

FEWEST_HELD_OUT = 10
"""Fewest leftover prompts of each kind on which a score is meaningful."""


def load_prompts(
    settings: Settings,
    reporter: Reporter,
    *,
    with_held_out: bool = True,
    scorers: Sequence[Scorer] | None = None,
) -> PromptSets:
    """Read the prompt sets, and report splits that share prompts.

    Args:
        with_held_out: Whether to look for held-out prompts too.
        scorers: Scorers, which may have prompts of their own; by default those of the settings.

    Raises:
        PromptError: A set cannot be read or is empty, good and bad prompts are the same, or a
            category in `keep` is unknown or leaves no prompt.
        SettingsError: `keep` is set, and a bad set has no categories.
        ScorerError: A scorer cannot be loaded.
    """
    _check_keep(settings, "bad_prompts", "bad_evaluation_prompts", "bad_held_out_prompts")
    scorers = load_scorers(settings) if scorers is None else scorers
    reporter.emit(StageStarted("Loading prompts"))
    system = settings.system_prompt
    sets = PromptSets(
        good=prompt_sets.load(settings.good_prompts, system),
        bad=prompt_sets.load(settings.bad_prompts, system),
        evaluation=evaluation_prompts(settings, scorers),
    )
    if set(sets.good) == set(sets.bad):
        raise PromptError(
            "The good and the bad prompts are the same prompts.",
            remedy="They must differ in what triggers the behaviour: check `dataset`, `split` and "
            "`column` of good_prompts and bad_prompts.",
        )
    if settings.protected_prompts is not None:
        sets = replace(sets, protected=prompt_sets.load(settings.protected_prompts, system))
    if with_held_out:
        sets = replace(sets, held_out=_held_out(settings, sets))
    check_kept(sets, settings.keep)
    sets = spare(sets, settings.keep)
    sets = replace(sets, held_out=_enough(settings, sets.held_out))
    _warn_of_overlap(sets, reporter)
    for remark in remarks_on_spared(sets, settings.keep):
        reporter.emit(Notice(remark, level="warning"))
    reporter.emit(StageFinished(_summary(sets, with_held_out=with_held_out)))
    return sets


def load_evaluation_prompts(
    settings: Settings, reporter: Reporter, scorers: Sequence[Scorer]
) -> PromptSets:
    """Read the evaluation splits alone, which stand for the others as well.

    Raises:
        PromptError: A set cannot be read or is empty, or as `load_prompts` for `keep`.
        SettingsError: `keep` is set, and the bad evaluation prompts have no categories.
    """
    _check_keep(settings, "bad_evaluation_prompts")
    reporter.emit(StageStarted("Loading prompts"))
    found = evaluation_prompts(settings, scorers)
    sets = spare(PromptSets(good=found.good, bad=found.bad, evaluation=found), settings.keep)
    reporter.emit(
        StageFinished(
            f"{len(found.good)} good and {len(sets.bad)} bad for evaluation"
            + (f", {len(sets.spared)} spared" if sets.spared else "")
        )
    )
    for remark in remarks_on_spared(sets, settings.keep, searched=False):
        reporter.emit(Notice(remark, level="warning"))
    return sets


def _check_keep(settings: Settings, *names: str) -> None:
    """Refuse `keep` where one of these bad sets has no categories: its prompts would all stay."""
    for name in names if settings.keep else ():
        specification = getattr(settings, name)
        parts = () if specification is None else each_of(specification)
        if any(part.category_column is None for part in parts):
            raise SettingsError(
                f"keep names categories, but {name} has no category_column.",
                remedy=f"Set {name}.category_column to the column that holds them, or leave keep "
                "out.",
            )


def _warn_of_overlap(sets: PromptSets, reporter: Reporter) -> None:
    """Warn of splits that share prompts."""
    evaluation = sets.evaluation
    scored = [prompt for rows in evaluation.by_name().values() for prompt in rows]
    scored += sets.spared
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
                    "split: scores on them look better than they are.",
                    level="warning",
                )
            )


def _summary(sets: PromptSets, *, with_held_out: bool) -> str:
    """The number of prompts of each kind, in one line."""
    evaluation = sets.evaluation
    return (
        f"{len(sets.good)} good and {len(sets.bad)} bad for directions, "
        + (f"{len(sets.protected)} protected, " if sets.protected else "")
        + f"{len(evaluation.good)} and {len(evaluation.bad)} for evaluation"
        + (f", {len(sets.spared)} spared" if sets.spared else "")
        + (f", {_held_out_text(sets.held_out)}" if with_held_out else "")
    )


def _held_out(settings: Settings, sets: PromptSets) -> EvaluationPrompts:
    """Prompts that no other set of the same kind holds; there may be few or none."""
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
    return EvaluationPrompts(good, bad, evaluation.more)


def _enough(settings: Settings, found: EvaluationPrompts | None) -> EvaluationPrompts | None:
    """The held-out split; None if either kind has too few prompts for it."""
    if found is None:
        return None
    named = settings.good_held_out_prompts, settings.bad_held_out_prompts
    for rows, specification in zip((found.good, found.bad), named, strict=True):
        # Prompts that the user named are used, however few they are.
        if len(rows) < (FEWEST_HELD_OUT if specification is None else 1):
            return None
    return found


def _held_out_text(prompts: EvaluationPrompts | None) -> str:
    if prompts is None:
        return "none held out"
    return f"{len(prompts.good)} and {len(prompts.bad)} held out"
