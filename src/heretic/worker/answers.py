"""What a worker finds out or does for a request, as data for its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heretic import pipeline
from heretic.config.presets import applied
from heretic.config.settings import Settings
from heretic.errors import ExportError, HereticError, RunError
from heretic.events import Reporter
from heretic.model.description import describe
from heretic.model.loading import LoadingOptions
from heretic.pipeline.again import sample_replies, score_again
from heretic.pipeline.described import Device, need_of
from heretic.pipeline.gguf_ahead import check_gguf_ahead
from heretic.pipeline.gguf_source import beside
from heretic.pipeline.run import Session
from heretic.prompts import Prompt
from heretic.records.choices import weights_strategy
from heretic.records.options import options_of
from heretic.records.selection import names_by_row
from heretic.records.trial import Score, Trial
from heretic.runs.shown import ORIGINAL
from heretic.scorers import load_scorers
from heretic.scorers.registry import detector_version
from heretic.system.models import check_model_named
from heretic.worker.asked import settings_of
from heretic.worker.protocol import Inspect, Preview, Sample, Save, Upload
from heretic.worker.protocol import Score as ScoreRequest

Result = dict[str, Any]


# --- before a run is open ------------------------------------------------------------------


def inspected(request: Inspect, reporter: Reporter) -> Result:
    """As `Inspect` says.

    Raises:
        HereticError: The model cannot be found or described.
    """
    settings = settings_of(request.settings, reporter, demo=request.demo)
    check_model_named(settings.model, settings.model_commit)
    device = Device.of(settings.dtypes[0], None)
    source = options_of(LoadingOptions, settings)
    found = describe(source, source.residual_writers, preset=applied(settings))
    need = need_of(found, settings, device, request.prompt_tokens)
    told = {"device": {"name": device.name, "memory": device.memory}}
    fits = {"fits": need.total <= device.memory}
    return found.to_dict() | {"memory": need.to_dict()} | told | fits


def previewed(request: Preview, reporter: Reporter) -> Result:
    """As `Preview` says.

    Raises:
        HereticError: A set or a scorer cannot be read.
    """
    settings = settings_of(request.settings, reporter, demo=request.demo, needs_model=False)
    sets = pipeline.load_prompts(settings, reporter, scorers=load_scorers(settings))
    found = {
        "good": sets.good,
        "bad": sets.bad,
        "good_evaluation": sets.evaluation.good,
        "bad_evaluation": sets.evaluation.bad,
        "protected": sets.protected,
        "spared": sets.spared,
    }
    if sets.held_out is not None:
        found |= {"good_held_out": sets.held_out.good, "bad_held_out": sets.held_out.bad}
    return {
        "sets": {
            name: {"count": len(rows), "first": _prompts(rows[: request.first])}
            for name, rows in found.items()
            if rows
        }
    }


# --- of an open run ------------------------------------------------------------------------


def described(session: Session) -> Result:
    """As the result of `Open`."""
    return front_of(session) | {
        "run": str(session.folder.path),
        "settings": session.settings.recorded(),
        "trials": session.study.completed,
        "n_trials": session.settings.n_trials,
        "baseline": _scores(session.evaluator.baseline),
        "held_out": session.prompts.held_out is not None,
        "batch": session.study.plans_at_once,
        "tokens": session.settings.max_response_length,
    }


def front_of(session: Session) -> Result:
    """As the result of `Front`."""
    front = session.study.front
    rows = zip(front, names_by_row(front), strict=True)
    return {
        "front": [
            {
                "trial": trial.number,
                "names": names,
                "scores": _scores(trial.scores),
                "plan": trial.plan.to_dict(),
            }
            for trial, names in rows
        ]
    }


def trial_of(session: Session, number: int) -> Trial:
    """The trial of that number.

    Raises:
        RunError: It does not exist, or has no scores.
    """
    for trial in session.study.trials:
        if trial.number == number and trial.state == "complete":
            return trial
    raise RunError(
        f"The run has no trial {number} with scores.", remedy="Take one of its complete trials."
    )


def sampled(
    session: Session,
    trials: Sequence[Trial],
    request: Sample,
    on_step: Callable[[int, int], None],
) -> Result:
    """As `Sample` says.

    Args:
        trials: Those that the request names.
        on_step: Called after every token.

    Raises:
        HereticError: The model cannot be run.
    """
    prompts = session.prompts.evaluation.by_name()[request.set][: request.first]
    found = sample_replies(
        session,
        trials,
        prompts,
        tokens=request.tokens,
        original=request.original,
        on_step=on_step,
    )
    return {
        "prompts": _prompts(prompts),
        "replies": {name: [asdict(reply) for reply in rows] for name, rows in found.items()},
        "judged": detector_version(session.evaluator.scorers) is not None,
    }


def scored(session: Session, request: ScoreRequest) -> Result:
    """As `Score` says.

    Raises:
        HereticError: The trial or the prompts do not exist, or the model cannot be run.
    """
    found = score_again(
        session,
        trial_of(session, request.trial),
        held_out=request.prompts == "held_out",
        first=request.first,
        tokens=request.tokens,
    )
    sides = {"before": _scores(found.before), "after": _scores(found.after)}
    counts = {"good": found.good, "bad": found.bad, "tokens": found.tokens}
    return sides | counts | {"warnings": list(found.warnings)}


def saved(session: Session, request: Save) -> Result:
    """As `Save` says.

    Raises:
        ExportError: The folder holds something that may not be replaced.
        HereticError: As `pipeline.export_trial`, or `pipeline.gguf.make_gguf`.
    """
    trial, folder = trial_of(session, request.trial), Path(request.folder).expanduser()
    if not request.replaces:
        _check_unused(folder)
    is_gguf = request.strategy == "gguf"
    settings = _checked_for_gguf(session, request, folder) if is_gguf else session.settings
    strategy = weights_strategy(request.strategy)
    exported = pipeline.export_trial(
        session, trial, folder, strategy, most_long=request.long_prompts
    )
    rows = {ORIGINAL: session.evaluator.baseline, "in the search": trial.scores}
    rows |= {"from disk": exported.saved} if exported.saved else {}
    if exported.held_out is not None:
        held_out = exported.held_out
        rows |= {"original, held out": held_out.before, "held out": held_out.after}
    return {
        "folder": str(folder),
        "rows": {name: _scores(scores) for name, scores in rows.items()},
        "compared": exported.compared,
        **(_gguf(session, settings, folder) if is_gguf else {}),
    }


def _checked_for_gguf(session: Session, request: Save, folder: Path) -> Settings:
    """The settings for files of llama.cpp, which can be made as far as can be told before."""
    types = request.gguf_types or session.settings.gguf_types
    changes = {"gguf_types": types, "save_directory": folder, "model_action": "save"}
    settings = session.settings.replaced(**changes)
    if not request.replaces:
        _check_unused(beside(folder))
    check_gguf_ahead(settings)
    return settings


def _gguf(session: Session, settings: Settings, folder: Path) -> Result:
    """The files for llama.cpp of what was saved in a folder.

    Raises:
        ExportError: They cannot be made; it says where the model is.
    """
    from heretic.pipeline.gguf import gguf_beside  # loads much

    try:
        place, found = gguf_beside(session, settings, folder)
    except HereticError as error:
        raise ExportError(
            f"The model is saved in {folder}, but not its GGUF files: {error.message}",
            remedy=error.remedy,
        ) from error
    return {"gguf": {"folder": str(place), **found.to_dict()}}


def _check_unused(folder: Path) -> None:
    """Refuse a folder that holds something now, whatever it held when somebody asked."""
    try:
        is_used = folder.is_dir() and any(folder.iterdir())
    except OSError as error:
        raise ExportError(
            f"{folder} cannot be looked into: {error.strerror or error}.",
            remedy="Choose another folder.",
        ) from error
    if is_used:
        raise ExportError(f"{folder} is not empty.", remedy="Name a new folder.")


def uploaded(session: Session, request: Upload) -> Result:
    """As `Upload` says.

    Raises:
        HereticError: As `pipeline.upload_trial`.
    """
    trial = trial_of(session, request.trial)
    url = pipeline.upload_trial(
        session, trial, request.repository, request.private, request.strategy
    )
    return {"url": url}


def _prompts(rows: Sequence[Prompt]) -> list[Mapping[str, str | None]]:
    return [{"user": one.user, "system": one.system, "category": one.category} for one in rows]


def _scores(scores: Sequence[Score]) -> list[Result]:
    return [score.to_dict() for score in scores]
