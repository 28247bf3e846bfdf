"""What makes a run the same run, and outputs the same outputs: digests of all they depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from heretic.config.settings import Settings
from heretic.config.tables import Datasets, each_of
from heretic.export.request import UsedPrompts
from heretic.model.core import Model
from heretic.prompts import EvaluationPrompts, Item, Prompt, PromptSets
from heretic.records.trial import Trial
from heretic.runs.folder import digest
from heretic.scorers.registry import deciding_options, detector_version
from heretic.system.hub import display_name
from heretic.system.machine import hardware, versions

if TYPE_CHECKING:
    from heretic.pipeline.run import Session


def fingerprint(settings: Settings, prompts: PromptSets) -> dict[str, Any]:
    """Everything that changes scores, except the seed: settings, and a digest of all prompts."""
    sets = (prompts.good, prompts.bad, prompts.evaluation.good, prompts.evaluation.bad)
    words: dict[str, Any] = {"words": [_words(rows) for rows in sets]}
    if prompts.protected:
        words["protected"] = _words(prompts.protected)
    if prompts.evaluation.more:
        words["more"] = {name: _words(rows) for name, rows in prompts.evaluation.more.items()}
    values = settings.fingerprint()
    scorer = deciding_options(settings.scorers, values["scorer"])
    return {**values, "scorer": scorer, "prompts": digest(words)}


def used_prompts(settings: Settings, prompts: PromptSets) -> tuple[UsedPrompts, ...]:
    """The sets of prompts that a run's figures rest on, for its documents."""
    sets = [
        ("good, directions", settings.good_prompts, prompts.good),
        ("bad, directions", settings.bad_prompts, prompts.bad),
        ("protected", settings.protected_prompts, prompts.protected),
        ("good, evaluation", settings.good_evaluation_prompts, prompts.evaluation.good),
        ("bad, evaluation", settings.bad_evaluation_prompts, prompts.evaluation.bad),
    ]
    if prompts.held_out is not None:
        sets += [
            ("good, held out", settings.good_held_out_prompts, prompts.held_out.good),
            ("bad, held out", settings.bad_held_out_prompts, prompts.held_out.bad),
        ]
    return tuple(
        UsedPrompts(use, _source(specification), len(rows), digest({"words": _words(rows)}))
        for use, specification, rows in sets
        if rows
    ) + tuple(
        UsedPrompts(name, "of the scorer", len(rows), digest({"words": _words(rows)}))
        for name, rows in prompts.evaluation.more.items()
    )


def _source(datasets: Datasets | None) -> str:
    """A prompt set as documents may name it: no local path, only the file's name."""
    parts = () if datasets is None else each_of(datasets)
    return " and ".join(
        f"{display_name(part.dataset)}{f' ({part.config})' if part.config else ''}, {part.split}"
        for part in parts
    )


def _words(prompts: Sequence[Prompt]) -> list[tuple[Any, ...]]:
    """All that a set says: an item's fields are more than a prompt's."""
    return [
        (prompt.system, prompt.user)
        + ((prompt.endings, prompt.right, prompt.delimiter) if isinstance(prompt, Item) else ())
        for prompt in prompts
    ]


def baseline_key(settings: Settings, prompts: PromptSets, model: Model) -> str:
    """Digest of all that the unedited model's outputs depend on, the machine included."""
    return digest(
        {
            **fingerprint(settings, prompts),
            "rendered": [
                model.prompt_text(prompt)
                for rows in prompts.evaluation.by_name().values()
                for prompt in rows
            ],
            "dtype": str(model.dtype),
            "hardware": hardware(model.device),
            "versions": versions(),
        }
    )


def trial_key(session: Session, prompts: EvaluationPrompts, trial: Trial, **more: Any) -> str:
    """Digest of all that the figures of a trial's model on these prompts depend on.

    Args:
        more: What else its figures depend on.
    """
    sets = replace(session.prompts, evaluation=prompts)
    of_original = baseline_key(session.settings, sets, session.model)
    version = detector_version(session.evaluator.scorers)
    judged = {} if version is None else {"detector": version}
    return digest({"original": of_original, "plan": trial.plan.to_dict(), **judged, **more})
