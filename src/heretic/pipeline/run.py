"""The stages in order, as functions with explicit inputs and typed results.

    settings -> model -> prompts -> residuals -> directions -> [plan -> scores] x trials -> front

Interactive use, settings alone, the library and reproduction are callers of these functions, not
modes inside them. What is found at run time goes into the run's manifest, never into the settings.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heretic import export
from heretic.config.settings import Settings
from heretic.errors import RunError
from heretic.evaluator.baseline import BaselineFile
from heretic.evaluator.evaluator import Evaluator
from heretic.evaluator.library import LibraryEvaluator
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.model.core import Model
from heretic.model.library import LibraryModel
from heretic.pipeline.stages import load_model, model_and_directions, scores_line
from heretic.prompts import Prompt, PromptSets
from heretic.records.options import options_of
from heretic.records.plan import Plan
from heretic.records.trial import Optimization, Score, Trial
from heretic.runs.folder import RunFolder, digest, find_run
from heretic.runs.manifest import RunManifest
from heretic.scorers import Scorer, check_scorers, load_scorers
from heretic.scorers.registry import behavior_shown, deciding_options
from heretic.search.method import Method, SearchOptions, choose_method, sweep_of_run
from heretic.search.study import Study
from heretic.system.machine import hardware, versions


@dataclass(frozen=True, slots=True)
class Session:
    """A run that is ready to search, export or chat."""

    settings: Settings
    reporter: Reporter
    model: LibraryModel
    prompts: PromptSets
    directions: Tensor
    folder: RunFolder
    manifest: RunManifest
    evaluator: LibraryEvaluator
    study: Study

    def request(self, trial: Trial) -> export.ExportRequest:
        """The trial with all that an export says about it."""
        return export.ExportRequest(
            trial=trial,
            directions=self.directions,
            baseline=self.evaluator.baseline,
            manifest=self.manifest,
            options=options_of(export.ExportOptions, self.settings),
            settings=self.settings.to_dict(),
        )


# --- single stages -------------------------------------------------------------------------


# --- runs ----------------------------------------------------------------------------------


def fingerprint(settings: Settings, prompts: PromptSets) -> dict[str, Any]:
    """Everything that changes scores but the seed: settings, and the prompts' very words."""
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


def open_folder(settings: Settings, prompts: PromptSets) -> tuple[RunFolder, int]:
    """The run folder of these settings, new or found again, and the run's seed.

    Without a seed in the settings, the latest run that is otherwise the same goes on with its own;
    where there is none, a seed is drawn and recorded.
    """
    code = fingerprint(settings, prompts)
    seed = settings.seed
    if seed is None:
        found = find_run(settings.study_checkpoint_dir, code)
        seed = found.seed if found is not None else secrets.randbelow(2**31)
    name = digest({**code, "seed": seed})
    return RunFolder.open(settings.study_checkpoint_dir, settings.model, name), seed


def prepare(
    settings: Settings,
    prompts: PromptSets,
    folder: RunFolder,
    seed: int,
    reporter: Reporter,
    *,
    scorers: Sequence[Scorer] | None = None,
) -> Session:
    """Everything up to the search. A run that exists already is taken up where it stopped.

    Args:
        folder: From `open_folder`, locked by the caller for as long as the session lasts.
        seed: The run's.
        scorers: Those of the settings, where they are loaded already.

    Raises:
        RunError: The run's files are damaged, or its start plans do not fit.
        ScorerError: A scorer cannot be loaded or used.
        ModelError: The model cannot be loaded, or edited as the settings say.
        StudyError: The prompt sets cannot be told apart, or there is no gradient to search by.
    """
    known = folder.read_manifest()
    # Read before the model loads, so that a mistake is said early.
    start_plans = _start_plans(settings)
    scorers = check_scorers(load_scorers(settings) if scorers is None else scorers)
    if known is None:
        model, directions = model_and_directions(settings, prompts, reporter)
        folder.save_directions(directions.numpy())
    else:
        model, directions = load_run(settings, folder, known, reporter)
    evaluator = LibraryEvaluator(
        settings,
        model,
        directions,
        reporter,
        prompts.evaluation,
        baseline_file=BaselineFile(folder.baseline_path, _baseline_key(settings, prompts, model)),
        scorers=scorers,
    )
    baseline = _scored_original(evaluator, known, reporter)
    manifest = known or new_manifest(settings, prompts, model, seed, baseline)
    if known is None:
        folder.write_manifest(manifest)
    options = options_of(SearchOptions, settings)
    sweep = sweep_of_run(
        options,
        model,
        prompts,
        directions,
        folder=folder,
        seed=seed,
        shows=behavior_shown(scorers, settings.refusal_markers),
        reporter=reporter,
    )
    method = choose_method(options, model, sweep, has_protected=bool(prompts.protected))
    study = _study(settings, folder, seed, method, evaluator.optimizations, start_plans)
    return Session(
        settings, reporter, model, prompts, directions, folder, manifest, evaluator, study
    )


def _scored_original(
    evaluator: Evaluator, known: RunManifest | None, reporter: Reporter
) -> tuple[Score, ...]:
    """Scores of the original model; where they are not those of the run, a warning is given."""
    reporter.emit(StageStarted("Scoring the original model"))
    baseline = evaluator.baseline
    reporter.emit(StageFinished(scores_line(baseline)))
    if known is not None:
        _warn_of_changes(known, baseline, reporter)
    return baseline


def _study(
    settings: Settings,
    folder: RunFolder,
    seed: int,
    method: Method,
    objectives: Sequence[Optimization],
    start_plans: Sequence[Plan],
) -> Study:
    return Study(
        folder,
        method.space,
        objectives=objectives,
        seed=seed,
        n_startup_trials=method.n_startup_trials,
        start_plans=[*start_plans, *method.plans],
        sampler=method.sampler,
        plans_at_once=method.plans_at_once,
        patience=settings.patience,
    )


def _start_plans(settings: Settings) -> tuple[Plan, ...]:
    """The user's own plans.

    Raises:
        RunError: They cannot be read, or remove more directions than the run has.
    """
    plans = read_plans(settings.start_plans) if settings.start_plans else ()
    rank = max((plan.rank for plan in plans), default=1)
    if rank > settings.max_rank:
        raise RunError(
            f"A plan in {settings.start_plans} removes {rank} directions from a layer.",
            remedy=f"Set max_rank to {rank}.",
        )
    return plans


def _baseline_key(settings: Settings, prompts: PromptSets, model: Model) -> str:
    """Digest of all that the unedited model's outputs depend on, the machine included."""
    return digest(
        {
            **fingerprint(settings, prompts),
            "response_prefix": model.response_prefix,
            "dtype": str(model.dtype),
            "hardware": hardware(model.device),
            "versions": versions(),
        }
    )


def load_run(
    settings: Settings, folder: RunFolder, manifest: RunManifest, reporter: Reporter
) -> tuple[LibraryModel, Tensor]:
    """The model of a run as it was searched, and the run's directions; needs no prompts.

    Raises:
        RunError: The directions are damaged or of another model.
    """
    found = manifest.found
    model = load_model(settings, reporter, dtypes=[found["dtype"]])
    model.response_prefix = str(found["response_prefix"])
    model.take_up(int(found["batch_size"]))
    directions = torch.from_numpy(folder.load_directions())
    # Between the two stand the directions of a layer's basis, if there are several.
    if (directions.shape[0], directions.shape[-1]) != (model.n_layers + 1, model.hidden_size):
        raise RunError(
            f"The directions in {folder.path} are of another model: {tuple(directions.shape)}.",
            remedy="Set checkpoint_action to restart.",
        )
    return model, directions


def _warn_of_changes(known: RunManifest, baseline: tuple[Score, ...], reporter: Reporter) -> None:
    """Say so if the original model no longer scores as it did when the run began."""
    recorded = [(row["name"], row["display"]) for row in known.found["baseline"]]
    if [(score.name, score.display) for score in baseline] != recorded:
        before = ", ".join(f"{name} {display}" for name, display in recorded)
        reporter.emit(
            Notice(
                f"The original model scored {before} when this run began: another machine or other "
                "package versions? Old and new trials may not compare.",
                level="warning",
            )
        )


def new_manifest(
    settings: Settings,
    prompts: PromptSets,
    model: Model,
    seed: int,
    baseline: tuple[Score, ...],
) -> RunManifest:
    """What a run is, and what was found when it began."""
    code = fingerprint(settings, prompts)
    return RunManifest(
        model=settings.model,
        digest=digest({**code, "seed": seed}),
        seed=seed,
        fingerprint=code,
        # Consent to run code is given to a command, never by a file.
        settings={**settings.to_dict(), "trust_remote_code": False},
        found={
            "response_prefix": model.response_prefix,
            "batch_size": model.batch_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "layers": model.n_layers,
            "hidden_size": model.hidden_size,
            "components": model.get_abliterable_components(),
            "baseline": [score.to_dict() for score in baseline],
        },
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def search(session: Session, n_trials: int | None = None) -> list[Trial]:
    """Search until `n_trials` trials (by default the setting, or the sweep's) are complete.

    Returns:
        The front.

    Raises:
        KeyboardInterrupt: The user stopped it; what was found is in `session.study`.
        StudyError: Ten trials in a row failed.
    """

    def evaluate(plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
        racing = session.settings.racing
        rivals = [trial.objectives() for trial in session.study.front] if racing else None
        try:
            return session.evaluator.evaluate(plans, rivals)
        finally:
            _record_batch_size(session)  # now: nothing is run at the end of a killed process

    session.study.run(
        evaluate,
        n_trials or session.settings.n_trials,
        session.reporter,
        baseline=session.evaluator.baseline,
        start_plans_only=n_trials is None and session.settings.search == "gradient",
        to_the_end=n_trials is not None,  # whoever asks for more is given more
    )
    return session.study.front


def _record_batch_size(session: Session) -> None:
    """Keep the batch size that memory left, so that the run is taken up with it."""
    manifest, size = session.manifest, session.model.batch_size
    if size < manifest.found["batch_size"]:
        found = {**manifest.found, "batch_size": size}
        session.folder.write_manifest(replace(manifest, found=found))


# --- other work ----------------------------------------------------------------------------


def read_plans(path: Path) -> tuple[Plan, ...]:
    """Plans of a JSON file: a plan, a list of them, `front.json`, or `abliteration_params.json`.

    Raises:
        RunError: The file cannot be read or holds no plan.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}.") from error
    rows = data if isinstance(data, list) else [data]
    if not rows:
        raise RunError(f"{path} holds no plan.")
    return tuple(
        Plan.from_dict(row["plan"] if isinstance(row, dict) and "plan" in row else row)
        for row in rows
    )
