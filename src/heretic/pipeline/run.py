"""A run: find its folder, prepare or resume it, and search.

Values found at run time go into the run's manifest, never into the settings.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import perf_counter

from torch import Tensor

from heretic.config.durations import seconds_in
from heretic.config.settings import Settings
from heretic.errors import RunError
from heretic.evaluator.baseline import BaselineFile
from heretic.evaluator.evaluator import Evaluator
from heretic.evaluator.library import LibraryEvaluator
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.export.request import ExportOptions, ExportRequest
from heretic.method.fits import Fit
from heretic.model.core import Model
from heretic.model.fits import read_fits
from heretic.model.library import LibraryModel
from heretic.pipeline.detector import check_detector, tell_of_detector
from heretic.pipeline.front import front_warnings
from heretic.pipeline.identity import baseline_key, fingerprint, used_prompts
from heretic.pipeline.known import model_of_run
from heretic.pipeline.sharing import begun_elsewhere, shared_study
from heretic.pipeline.shown import keep_proposed
from heretic.pipeline.stages import scores_line
from heretic.pipeline.workers import workers_of
from heretic.pipeline.worthwhile import Agree, check_worthwhile
from heretic.prompts import PromptSets
from heretic.records.options import options_of
from heretic.records.plan import Plan
from heretic.records.selection import share_of
from heretic.records.trial import Optimization, Score, Trial
from heretic.runs.folder import RunFolder, digest
from heretic.runs.listing import find_run
from heretic.runs.manifest import RunManifest
from heretic.runs.plans import read_plans
from heretic.scorers import Scorer, check_scorers, load_scorers
from heretic.scorers.registry import (
    behavior_shown,
    behavior_shown_at,
    detector_version,
    tells_words,
)
from heretic.search.beginning import Beginning, first_plans, method_of
from heretic.search.limits import BetweenBatches, TimeLimit
from heretic.search.method import Method, SearchOptions, choose_method
from heretic.search.study import Study
from heretic.system.machine import versions
from heretic.tracking.reporter import tracking


@dataclass(frozen=True, slots=True)
class Session:
    """A run that is ready to search, export or chat.

    `started` is when the command began, by `time.perf_counter`: its time limit counts from there.
    """

    settings: Settings
    reporter: Reporter
    model: LibraryModel
    prompts: PromptSets
    directions: Tensor
    folder: RunFolder
    manifest: RunManifest
    evaluator: LibraryEvaluator
    study: Study
    started: float

    def request(self, trial: Trial) -> ExportRequest:
        """The trial with everything that an export of it needs."""
        return ExportRequest(
            trial=trial,
            directions=self.directions,
            baseline=self.evaluator.baseline,
            manifest=self.manifest,
            options=options_of(ExportOptions, self.settings),
            settings=self.settings.to_dict(),
            prompts=used_prompts(self.settings, self.prompts),
            compared=max(1, self.study.completed),
        )


# --- runs ----------------------------------------------------------------------------------


def open_folder(settings: Settings, prompts: PromptSets) -> tuple[RunFolder, int]:
    """Open the run folder of these settings, or create it; returns it with the run's seed.

    If the settings have no seed, the latest run with the same fingerprint is opened, with its seed.
    If there is no such run, a seed is drawn. With a storage, the seed follows from the fingerprint.
    """
    code = fingerprint(settings, prompts)
    seed = settings.seed
    if seed is None and settings.storage is not None:
        seed = int(digest(code)[:7], 16)  # all processes find the same run
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
    agree: Agree | None = None,
    started: float | None = None,
) -> Session:
    """Do everything up to the search. A run that exists already is resumed where it stopped.

    Args:
        folder: From `open_folder`, locked by the caller for as long as the session lasts.
        seed: Seed of the run, from `open_folder`.
        scorers: The scorers of the settings, if they are loaded and checked already.
        agree: Asks whether to search for a behaviour that hardly shows; without it a notice warns.
        started: When the command began, by `time.perf_counter`; by default, now.

    Raises:
        RunError: The run's files are damaged, or its start plans do not fit.
        ScorerError: A scorer cannot be loaded or used.
        SettingsError: `max_refusals` does not fit the scorers.
        ModelError: The model cannot be loaded, or edited as the settings say.
        StudyError: The prompt sets have the same residuals, the gradient search finds no gradient,
            the behaviour hardly shows and the user does not agree to search for it, or the storage
            does not answer or holds what does not fit.
    """
    started = perf_counter() if started is None else started
    # Read before the model loads, so that a mistake is reported early.
    start_plans, fits = start_plans_of(settings)
    if scorers is None:
        scorers = check_scorers(load_scorers(settings), settings.max_refusals)
    with begun_elsewhere(settings, prompts, folder, seed, detector_version(scorers), reporter):
        return _prepared(
            settings, prompts, folder, seed, reporter, scorers, agree, started, start_plans, fits
        )


def _prepared(
    settings: Settings,
    prompts: PromptSets,
    folder: RunFolder,
    seed: int,
    reporter: Reporter,
    scorers: Sequence[Scorer],
    agree: Agree | None,
    started: float,
    start_plans: Sequence[Plan],
    fits: Sequence[Fit],
) -> Session:
    known = folder.read_manifest()
    model, directions = model_of_run(settings, prompts, folder, known, reporter)
    model.add_fits(fits)
    evaluator = LibraryEvaluator(
        settings,
        model,
        directions,
        reporter,
        prompts.evaluation,
        baseline_file=BaselineFile(folder.baseline_path, baseline_key(settings, prompts, model)),
        scorers=scorers,
    )
    baseline = _scored_original(evaluator, known, reporter)
    aim = share_of(settings.max_refusals, baseline)
    if known is None:
        check_worthwhile(settings, evaluator, prompts.evaluation.good, reporter, agree)
    options = options_of(SearchOptions, settings)
    how = method_of(options, known, tells_words=tells_words(scorers))
    found = (baseline, how, detector_version(scorers))
    manifest = known or new_manifest(settings, prompts, model, seed, *found)
    if known is None:
        folder.write_manifest(manifest)
    for fit in fits:
        folder.write_fit(fit.digest, fit.content())
    markers, limit = settings.refusal_markers, _limit(settings, started)
    shown = behavior_shown(scorers, markers), behavior_shown_at(scorers, markers)
    own = (model, prompts, directions, folder, seed, *shown, reporter, limit)
    first = first_plans(Beginning(options, how, *own))
    method = choose_method(options, model, first, has_protected=bool(prompts.protected))
    study = _study(settings, folder, seed, method, evaluator.optimizations, start_plans, aim)
    run = (folder, manifest, evaluator, study, started)
    return Session(settings, reporter, model, prompts, directions, *run)


def _scored_original(
    evaluator: Evaluator, known: RunManifest | None, reporter: Reporter
) -> tuple[Score, ...]:
    """Score the original model; warn if its scores differ from those recorded in the run."""
    tell_of_detector(known, evaluator.scorers, reporter)
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
    aim: float | None,
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
        aim=aim,
    )


def start_plans_of(settings: Settings) -> tuple[tuple[Plan, ...], Sequence[Fit]]:
    """The user's own plans, and the fits that they name.

    Raises:
        RunError: They cannot be read, or remove more than `max_rank` directions from a layer.
    """
    plans = read_plans(settings.start_plans) if settings.start_plans else ()
    rank = max((plan.rank for plan in plans if not plan.fits), default=1)
    if rank > settings.max_rank:
        raise RunError(
            f"A plan in {settings.start_plans} removes {rank} directions from a layer, which is "
            "more than max_rank.",
            remedy=f"Set max_rank to {rank}.",
        )
    return plans, read_fits(plans, settings.start_plans.parent) if settings.start_plans else []


def _warn_of_changes(known: RunManifest, baseline: tuple[Score, ...], reporter: Reporter) -> None:
    """Warn if the original model no longer scores as it did when the run began.

    Figures are compared, not their texts: a text may also say how replies were classified.
    """
    recorded = known.baseline
    if not _same_figures(recorded, baseline):
        before = ", ".join(f"{score.name} {score.display}" for score in recorded)
        reporter.emit(
            Notice(
                f"The original model scored {before} when this run began, but not now. The machine "
                "or package versions may have changed; old and new trials may not be comparable.",
                level="warning",
            )
        )


def _same_figures(first: Sequence[Score], second: Sequence[Score]) -> bool:
    """Whether scores have the same names in the same order, and equal values to four digits."""
    return [score.name for score in first] == [score.name for score in second] and all(
        (one.withheld and other.withheld)
        or math.isclose(one.value, other.value, rel_tol=1e-4, abs_tol=1e-4)
        for one, other in zip(first, second, strict=True)
    )


def new_manifest(
    settings: Settings,
    prompts: PromptSets,
    model: Model,
    seed: int,
    baseline: tuple[Score, ...],
    search: str | None = None,
    detector: int | None = None,
) -> RunManifest:
    """The manifest of a new run: its identity, and the values found when it began.

    Args:
        search: What proposes the plans; None without a search.
        detector: Version of the refusal detector; None if no scorer uses it.
    """
    code = fingerprint(settings, prompts)
    return RunManifest(
        model=settings.model,
        digest=digest({**code, "seed": seed}),
        seed=seed,
        fingerprint=code,
        settings=settings.recorded(),
        found={
            "response_prefix": model.response_prefix,
            "date": model.renderer.date.isoformat(),
            "batch_size": model.batch_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "layers": model.n_layers,
            "hidden_size": model.hidden_size,
            "components": model.get_abliterable_components(),
            "baseline": [score.to_dict() for score in baseline],
            **({} if search is None else {"search": search}),
            **({} if detector is None else {"detector": detector}),
        },
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def search(
    session: Session,
    n_trials: int | None = None,
    *,
    timed: bool = True,
    between_batches: BetweenBatches | None = None,
) -> list[Trial]:
    """Search until `n_trials` trials are complete, or the setting `time_limit` is reached.

    Args:
        n_trials: By default the setting; the gradient search then ends with the sweep's plans.
        timed: Whether the time limit counts.
        between_batches: Called before each batch of trials, see `heretic.search.study`.

    Returns:
        The trials on the front.

    Raises:
        KeyboardInterrupt: The user stopped the search; its trials are in `session.study`.
        RunError: The run was judged by another version of the refusal detector.
        SettingsError: A tracker is set that is not installed.
        StudyError: Ten trials in a row failed, no worker is left, or the storage does not answer or
            holds what does not fit.
        HereticError: The workers cannot be started.
    """
    check_detector(session.manifest, session.evaluator.scorers, session.folder.path)

    def evaluate(plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
        racing = session.settings.racing
        rivals = [trial.objectives() for trial in session.study.front] if racing else None
        try:
            return session.evaluator.evaluate(plans, rivals)
        finally:
            _record_batch_size(session)  # at once, since a killed process runs nothing at its end

    settings, folder = session.settings, session.folder
    with (
        tracking(settings, folder.tracking_id, settings.to_dict(), session.reporter) as reporter,
        workers_of(session) if settings.workers else nullcontext(evaluate) as scoring,
        shared_study(session),
    ):
        session.study.run(
            scoring,
            n_trials or settings.n_trials,
            reporter,
            baseline=session.evaluator.baseline,
            start_plans_only=n_trials is None and settings.search == "gradient",
            to_the_end=n_trials is not None,  # whether the front grows or not
            time_limit=_limit(settings, session.started) if timed else None,
            between_batches=between_batches,
        )
    front, evaluator = session.study.front, session.evaluator
    for text in front_warnings(front, evaluator.baseline, evaluator.scorers):
        session.reporter.emit(Notice(text, level="warning"))
    keep_proposed(session)
    return front


def _limit(settings: Settings, started: float) -> TimeLimit | None:
    """The setting `time_limit`, which counts from the command's start."""
    limit = settings.time_limit
    return TimeLimit(seconds_in(limit), started) if limit else None


def _record_batch_size(session: Session) -> None:
    """Record a batch size that was reduced to fit memory; a resumed run begins with it."""
    manifest, size = session.manifest, session.model.batch_size
    if size < manifest.found["batch_size"]:
        found = {**manifest.found, "batch_size": size}
        session.folder.write_manifest(replace(manifest, found=found))
