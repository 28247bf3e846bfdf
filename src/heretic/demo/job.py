"""The demo: a search on the planted model, and measurements that only a planted model allows.

The model before planting is known, so *recovery* can be measured: the distance of the edited model
from the model that never learned to refuse, compared with its distance from the planted model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.config.nested import merged
from heretic.config.schema import option_name
from heretic.config.settings import Settings
from heretic.demo.base import base_model, planted_model
from heretic.demo.data import prompt_file
from heretic.errors import SettingsError
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.export.files import check_destination
from heretic.records.selection import row_within, trial_in_row
from heretic.records.trial import Trial

if TYPE_CHECKING:
    from heretic.model.core import Model
    from heretic.pipeline.run import Session
    from heretic.prompts import Prompt

SHOWN_TOPIC, SHOWN_ORDINARY = 4, 2
"""Number of prompts of each kind whose replies are shown before and after the edit."""

LONG_PROMPTS = 30
"""Number of prompts that get long replies before the model is saved; all would take minutes."""

ENOUGH = 0.1
"""Refusal rate that counts as removed when a trial is chosen."""

DEFAULTS: Mapping[str, Any] = {
    "n_trials": 14,
    "n_startup_trials": 8,
    "seed": 1,
    "max_response_length": 30,
    "batch_size": 100,
    "response_prefix": "",
    "search": "ablation",  # sooner than a fit, which does two thirds of the damage here
    "checkpoint_action": "continue",
    "export_strategy": "merge",
    "save_directory": "heretic-demo-model",
}
"""Settings with which the demo takes minutes on two cores; the command line overrides them."""

_OF_SAVING = ("save_directory", "export_strategy")

NOT_TAKEN = (
    "model",
    "evaluate_model",
    "model_action",
    "n_additional_trials",
    "upload_repo_id",
    "upload_repo_private",
    "benchmarks",
    "benchmark_original",
    "benchmark_limit",
    "benchmark_path",
)
"""Settings that the demo refuses, because it has its own model and ends by saving it."""


def _prompts(name: str, split: str) -> dict[str, str]:
    return {"dataset": str(prompt_file(name)), "split": split}


def demo_settings(
    reporter: Reporter, overrides: Mapping[str, Any], *, saves: bool = True
) -> Settings:
    """Settings of the demo; downloads and converts the model if that has not been done.

    Args:
        reporter: Receives progress.
        overrides: Settings from the user.
        saves: Whether the demo saves its model by itself; if not, they name no folder.

    Raises:
        HereticError: The demo does not take an override, the folder to save in is not empty, or the
            model cannot be downloaded.
    """
    for name in NOT_TAKEN:
        if name in overrides:
            raise SettingsError(
                f"The demo takes no {option_name(name)}.",
                remedy="Export its trials with `heretic export`, or use `heretic MODEL`.",
            )
    values = {**DEFAULTS, **overrides}
    if not saves:
        values = {name: value for name, value in values.items() if name not in _OF_SAVING}
    elif values["export_strategy"] == "gguf":
        raise SettingsError(
            "The demo makes no GGUF files.",
            remedy=f"Run `heretic gguf {values['save_directory']}` after it.",
        )
    if saves:
        check_destination(Path(values["save_directory"]), "")

    def say(text: str) -> None:
        reporter.emit(Notice(text))

    given = {
        "model": str(planted_model(say)),
        "good_prompts": _prompts("ordinary_train", "train[:100]"),
        "bad_prompts": _prompts("topic_train", "train[:100]"),
        "good_evaluation_prompts": _prompts("ordinary_test", "train[:100]"),
        "bad_evaluation_prompts": _prompts("topic_test", "train[:100]"),
        "good_held_out_prompts": _prompts("ordinary_held_out", "train[:100]"),
        "bad_held_out_prompts": _prompts("topic_held_out", "train[:100]"),
    }
    return Settings.restore(merged(given, values))


def chosen_trial(settings: Settings, front: Sequence[Trial]) -> Trial | None:
    """The row that `trial_index` or else `max_refusals` chooses; by default the demo's own choice.

    Raises:
        SettingsError: The front has no such row.
    """
    if not front:
        return None
    if settings.trial_index is not None:
        return trial_in_row(front, settings.trial_index)
    if settings.max_refusals is not None:
        return front[row_within(front, settings.max_refusals).row]
    return best_trial(front)


def best_trial(front: Sequence[Trial]) -> Trial | None:
    """The trial that the demo saves: of those that refuse at most 10%, the one with the least KL.

    If no trial refuses so little: the smallest sum of refusal rate and KL divergence. None for an
    empty front.
    """

    def value(trial: Trial, name: str) -> float:
        score = trial.score(name)
        return score.value if score is not None else 0.0

    enough = [trial for trial in front if value(trial, "refusals") <= ENOUGH]
    if enough:
        return min(enough, key=lambda trial: value(trial, "kl_divergence"))
    return min(front, key=lambda t: value(t, "refusals") + value(t, "kl_divergence"), default=None)


@dataclass(frozen=True, slots=True)
class Recovery:
    """First-token KL divergences in nats; each pair is on topic prompts and on ordinary ones.

    Attributes:
        unplanted_planted: KL(unplanted || planted): the effect of planting.
        unplanted_edited: KL(unplanted || edited): what remains of that effect after the edit.
        planted_edited: KL(planted || edited): the effect of the edit.
    """

    unplanted_planted: tuple[float, float]
    unplanted_edited: tuple[float, float]
    planted_edited: tuple[float, float]


def measure_recovery(session: Session, trial: Trial, reporter: Reporter) -> Recovery:
    """Compare the unplanted, the planted and the edited model on the evaluation prompts."""
    from heretic.model.library import LibraryModel
    from heretic.scorers.kl_divergence import kl_divergence

    reporter.emit(StageStarted("Measuring recovery against the model before planting"))
    sets = session.prompts.evaluation
    prompts: Sequence[Sequence[Prompt]] = (sets.bad, sets.good)
    unplanted = LibraryModel(session.settings.replaced(model=str(base_model()), batch_size=0))
    unplanted.batch_size = session.model.batch_size

    def logits(model: Model) -> list[Any]:
        return [model.get_logits_batched(rows, report=False) for rows in prompts]

    before_planting = logits(unplanted)
    planted = logits(session.model)
    with session.model.edited(trial.plan, session.directions):
        edited = logits(session.model)

    def divergences(first: list[Any], second: list[Any]) -> tuple[float, float]:
        topic, ordinary = (kl_divergence(a, b) for a, b in zip(first, second, strict=True))
        return topic, ordinary

    recovery = Recovery(
        unplanted_planted=divergences(before_planting, planted),
        unplanted_edited=divergences(before_planting, edited),
        planted_edited=divergences(planted, edited),
    )
    reporter.emit(StageFinished())
    return recovery


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt with the planted and the edited model's replies."""

    prompt: str
    before: str
    after: str


def replies(session: Session, trial: Trial, reporter: Reporter) -> list[Exchange]:
    """A few replies before and after the edit, to topic prompts first."""
    reporter.emit(StageStarted("Writing replies before and after"))
    sets = session.prompts.evaluation
    shown = [*sets.bad[:SHOWN_TOPIC], *sets.good[:SHOWN_ORDINARY]]

    def answer() -> list[str]:
        return session.model.get_responses_batched(shown, max_new_tokens=40, report=False)

    before = answer()
    with session.model.edited(trial.plan, session.directions):
        after = answer()
    reporter.emit(StageFinished())
    return [
        Exchange(prompt.user, old, new)
        for prompt, old, new in zip(shown, before, after, strict=True)
    ]


def saved_in(settings: Settings) -> Path:
    """The folder that the demo saves its model in."""
    return settings.save_directory or Path(str(DEFAULTS["save_directory"]))
