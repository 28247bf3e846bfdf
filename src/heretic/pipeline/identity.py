"""What makes a run the same run, and outputs the same outputs: digests of all they depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from heretic.config.settings import Settings
from heretic.model.core import Model
from heretic.prompts import EvaluationPrompts, Prompt, PromptSets
from heretic.records.trial import Trial
from heretic.runs.folder import digest
from heretic.scorers.registry import deciding_options, detector_version
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


def _words(prompts: Sequence[Prompt]) -> list[tuple[str | None, str]]:
    return [(prompt.system, prompt.user) for prompt in prompts]


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
