"""Work without a search: apply a plan to a model, or score one model against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor

from heretic.config.schema import consent_names, run_names, values_as_before
from heretic.config.settings import Settings
from heretic.errors import HereticError, ModelError, RunError
from heretic.evaluator.library import LibraryEvaluator
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.export import saving, verify
from heretic.export.documents.reproduction import found_in_export
from heretic.export.request import ExportOptions, ExportRequest, LongReplies
from heretic.export.serving import adapter_text
from heretic.method.fits import Fit
from heretic.model.core import Model
from heretic.model.library import LibraryModel
from heretic.model.loading import load_tokenizer
from heretic.model.source import ModelSource
from heretic.pipeline.audit import audit_export
from heretic.pipeline.categories import evaluator_on_spared, tables_of
from heretic.pipeline.checks import check_model
from heretic.pipeline.identity import used_prompts
from heretic.pipeline.known import load_run
from heretic.pipeline.long_replies import Chosen, OfModels, from_disk, long_scores
from heretic.pipeline.precision import in_full_precision, packed_anew
from heretic.pipeline.prompts import load_evaluation_prompts, load_prompts
from heretic.pipeline.run import new_manifest
from heretic.pipeline.stages import (
    check_rendering,
    choose_prefix,
    load_judged,
    load_model,
    model_and_directions,
    scores_line,
)
from heretic.prompts import EvaluationPrompts, PromptSets
from heretic.records.categories import CategoryTable
from heretic.records.options import options_of
from heretic.records.plan import Plan
from heretic.records.trial import Score, Trial
from heretic.runs.folder import RunFolder
from heretic.runs.manifest import RunManifest, recorded_date
from heretic.scorers import check_scorers, load_scorers

OWN_WHEN_APPLYING = ("model", "scorers", "scorer", "max_shard_size", *consent_names())
"""Settings that the user, not the run, decides when a plan is applied with a run's directions."""


def apply_plan(
    settings: Settings,
    plan: Plan,
    destination: Path,
    strategy: str,
    reporter: Reporter,
    *,
    fits: Sequence[Fit] = (),
    run: RunFolder | None = None,
    date: datetime | None = None,
) -> tuple[Score, ...]:
    """Edit and save a model without a search, and score what was saved.

    Args:
        fits: The fits that the plan names.
        run: A run whose directions, prompts and method are used; without one, directions are
            computed from the prompts of the settings.
        date: Without a run, the date that the plan was found with, for chat templates.

    Raises:
        RunError: The plan does not fit the model or its directions, or `run` holds no run.
        ExportError: The model cannot be saved, or the saved model does not score as before.
        AuditError: The saved files are not what the plan and the card say.
    """
    known = None if run is None else run.require_manifest()
    if known is not None:
        settings = _with_directions_of(known, settings)
    check_model(settings)
    saving.check_place(options_of(ExportOptions, settings), destination, strategy)
    scorers = check_scorers(load_scorers(settings))
    prompts = load_prompts(settings, reporter, with_held_out=False, scorers=scorers)
    if run is not None and known is not None:
        model, directions = load_run(settings, run, known, reporter)
    else:
        model, directions = model_and_directions(
            settings, prompts, reporter, variant=plan.row_normalization, date=date
        )
    _take_up(plan, fits, model, directions)
    saving.check_export(model, destination, strategy, settings.max_rank)
    if strategy == "adapter":
        reporter.emit(Notice(adapter_text(plan)))
    evaluator = LibraryEvaluator(
        settings, model, directions, reporter, prompts.evaluation, scorers=scorers
    )
    trial, baseline = _scored(plan, evaluator, reporter), evaluator.baseline
    request = ExportRequest(
        trial=trial,
        directions=directions,
        baseline=baseline,
        manifest=known or new_manifest(settings, prompts, model, settings.seed or 0, baseline),
        options=options_of(ExportOptions, settings),
        settings=settings.to_dict(),
        prompts=used_prompts(settings, prompts),
        long_replies=long_scores(Chosen(trial, evaluator, prompts.evaluation, reporter)),
        categories=_by_category(trial, evaluator, prompts),
    )
    folder = saving.save(model, request, destination, strategy=strategy, reporter=reporter)
    return _checked(folder, request, evaluator, prompts.evaluation, strategy, reporter)


def _checked(
    folder: Path,
    request: ExportRequest,
    evaluator: LibraryEvaluator,
    prompts: EvaluationPrompts,
    strategy: str,
    reporter: Reporter,
) -> tuple[Score, ...]:
    """Score and audit the saved files; returns their scores."""
    request = verify.verify(
        folder,
        request,
        evaluator,
        reporter,
        measure_full=in_full_precision(evaluator.settings, evaluator, prompts, reporter),
        measure_long=from_disk(evaluator, prompts, request.long_replies, reporter),
        measure_packed=packed_anew(evaluator, request, prompts, strategy),
    )
    audit_export(folder, evaluator.model, reporter)
    return request.verified or ()


def _scored(plan: Plan, evaluator: LibraryEvaluator, reporter: Reporter) -> Trial:
    """The plan as the only trial, with its scores."""
    reporter.emit(StageStarted("Scoring the plan"))
    scores = evaluator.evaluate([plan])[0]
    reporter.emit(StageFinished(scores_line(scores)))
    return Trial(number=0, plan=plan, scores=scores)


def _by_category(
    trial: Trial, evaluator: LibraryEvaluator, prompts: PromptSets
) -> tuple[CategoryTable, ...]:
    """Scores of the plan by category of the prompts, and on those of spared categories."""
    pair = evaluator.baseline, trial.scores
    tables = tables_of("evaluation", evaluator.scorers, prompts.evaluation, *pair)
    apart = evaluator_on_spared(evaluator, prompts.spared)
    if apart is None:
        return tables
    before, [after] = evaluator.score_again(apart, [trial.plan])
    rows = EvaluationPrompts((), prompts.spared)
    return tables + tables_of("spared", apart.scorers, rows, before, after)


def _with_directions_of(known: RunManifest, settings: Settings) -> Settings:
    """The run decides what directions depend on; the user decides what code may run."""
    own = {name: settings.to_dict()[name] for name in OWN_WHEN_APPLYING}
    said = {name: value for name, value in known.settings.items() if name in run_names()}
    return Settings.restore({**values_as_before(), **said, **own})


def _take_up(plan: Plan, fits: Sequence[Fit], model: Model, directions: Tensor) -> None:
    """Give the model a plan's fits, and refuse a plan for components or directions it lacks."""
    model.add_fits(fits)
    unknown = {name for name, _ in plan.kernels} - set(model.get_abliterable_components())
    if unknown:
        raise RunError(
            f"The plan edits {', '.join(sorted(unknown))}, which this model does not have.",
            remedy=f"It has {', '.join(model.get_abliterable_components())}.",
        )
    known_rank = directions.shape[1] if directions.dim() == 3 else 1
    if plan.rank > known_rank and not plan.fits:
        raise RunError(
            f"The plan removes {plan.rank} directions from a layer; only {known_rank} exist.",
            remedy=f"Set max_rank to {plan.rank}, or apply the plan with the run it comes from.",
        )


def prepare_directions(
    settings: Settings, seed: int, reporter: Reporter, date: datetime | None = None
) -> tuple[LibraryModel, Tensor]:
    """Load the model and compute directions without a run, to reproduce a plan.

    No scorer is loaded: nothing is scored, and a reproduction file may come from anybody.

    Args:
        seed: Seed of torch; directions do not depend on it.
        date: The run's date, for chat templates.

    Returns:
        The model, and directions as from `compute_directions`.
    """
    torch.manual_seed(seed)
    check_model(settings)
    prompts = load_prompts(settings, reporter, with_held_out=False, scorers=())
    return model_and_directions(settings, prompts, reporter, date=date)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of the original model (`baseline`) and of the model judged against it.

    `categories` holds them by category of the prompts; it is empty where sets have no categories.
    `long_replies` is None where only the configured scorers were asked for.
    """

    baseline: tuple[Score, ...]
    judged: tuple[Score, ...]
    categories: tuple[CategoryTable, ...] = ()
    long_replies: LongReplies | None = None

    @property
    def measured(self) -> tuple[Score, ...]:
        """The judged model's scores, and those that were measured on long replies only."""
        names = {score.name for score in self.judged}
        more = () if self.long_replies is None else self.long_replies.after
        return self.judged + tuple(score for score in more if score.name not in names)


def compare(settings: Settings, reporter: Reporter, *, thoroughly: bool = False) -> Comparison:
    """Score `evaluate_model` against `model`.

    Args:
        thoroughly: Whether long replies and capability are measured too, as of a chosen trial.

    Raises:
        HereticError: `evaluate_model` is not set.
        ModelError: The vocabularies differ, so distributions cannot be compared.
    """
    if not settings.evaluate_model:
        raise HereticError("There is no model to evaluate.", remedy="Set evaluate_model.")
    # The judged model runs like the original, whose preset is in the settings already.
    judged_settings = settings.replaced(
        model=settings.evaluate_model, model_commit=None, preset="none"
    )
    if _vocabulary(settings) != _vocabulary(judged_settings):
        raise _different_vocabularies(settings)
    scorers = check_scorers(load_scorers(settings))
    prompts = load_evaluation_prompts(settings, reporter, scorers)
    original = load_model(settings, reporter)
    _prompt_as_recorded(settings, original, prompts, reporter)
    evaluator = LibraryEvaluator(
        settings, original, reporter=reporter, prompts=prompts.evaluation, scorers=scorers
    )
    reporter.emit(StageStarted(f"Scoring {settings.model}"))
    baseline = evaluator.baseline
    apart = evaluator_on_spared(evaluator, prompts.spared)
    spared = () if apart is None else apart.baseline
    reporter.emit(StageFinished(scores_line(baseline)))
    report = OfModels.begun(evaluator, prompts.evaluation, reporter) if thoroughly else None
    prefix, date = original.response_prefix, original.renderer.date
    texts = _rendered(original, prompts)
    width = original.model.get_output_embeddings().weight.shape[0]
    for used in filter(None, (evaluator, apart)):
        used.release()
    original.unload()  # so that only one large model has to fit into memory
    judged = load_judged(judged_settings, reporter)
    if judged.model.get_output_embeddings().weight.shape[0] != width:
        raise _different_vocabularies(settings)
    judged.response_prefix, judged.renderer.date = prefix, date
    check_rendering(judged, prompts, reporter)
    if _rendered(judged, prompts) != texts:
        reporter.emit(
            Notice(
                "The chat templates of the two models differ: their scores are for different "
                "prompts.",
                level="warning",
            )
        )
    reporter.emit(StageStarted(f"Scoring {settings.evaluate_model}"))
    scores = evaluator.score_model(judged)
    tables = tables_of("evaluation", scorers, prompts.evaluation, baseline, scores)
    if apart is not None:
        rows = EvaluationPrompts((), prompts.spared)
        tables += tables_of("spared", scorers, rows, spared, apart.score_model(judged))
    reporter.emit(StageFinished(scores_line(scores)))
    long = None if report is None else report.judged(judged, settings.evaluate_model)
    return Comparison(baseline, scores, tables, long)


def _prompt_as_recorded(
    settings: Settings, model: Model, prompts: PromptSets, reporter: Reporter
) -> None:
    """Give prompts the date and the response prefix that an export of Heretic's records.

    Where neither model is one, the date is now, and the prefix is found on the evaluation prompts.
    """
    assert settings.evaluate_model is not None
    name, recorded = settings.evaluate_model, found_in_export(settings.evaluate_model)
    if not recorded:
        name, recorded = settings.model, found_in_export(settings.model, settings.model_commit)
    model.renderer.date = recorded_date(recorded) or model.renderer.date
    check_rendering(model, prompts, reporter)
    prefix = recorded.get("response_prefix")
    if settings.response_prefix == "auto" and prefix is not None:
        model.response_prefix = prefix
        reporter.emit(Notice(f"Response prefix, as {name} records it: {prefix!r}"))
        return
    choose_prefix(settings, model, prompts, reporter)


def _rendered(model: Model, prompts: PromptSets) -> list[str]:
    """The text of every evaluation prompt."""
    rows = prompts.evaluation.by_name().values()
    return [model.prompt_text(prompt) for row in rows for prompt in row]


def _vocabulary(settings: Settings) -> dict[str, int]:
    """Id of each token, from the tokenizer of the setting `model`, which is checked first."""
    tokenizer = check_model(settings, edited=False) or load_tokenizer(
        options_of(ModelSource, settings)
    )
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary


def _different_vocabularies(settings: Settings) -> ModelError:
    return ModelError(
        f"{settings.evaluate_model} and {settings.model} have different vocabularies.",
        remedy="Only models with the same tokenizer can be compared.",
    )
