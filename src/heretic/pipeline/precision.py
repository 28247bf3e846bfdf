"""What quantisation changes: scores in full precision, and what packing edited weights costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from heretic.config.settings import Settings
from heretic.errors import HereticError
from heretic.evaluator.library import LibraryEvaluator
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.export.request import ExportRequest, FullPrecision, Repacked
from heretic.export.verify import reload
from heretic.model.core import Model
from heretic.model.library import LibraryModel
from heretic.model.loading import quantisation
from heretic.pipeline.stages import scores_line
from heretic.prompts import EvaluationPrompts
from heretic.scorers.kl_divergence import kl_divergence

MeasurePacked = Callable[[Model], Repacked | None]
"""Measures a saved model that was loaded again; None if its weights are not packed."""

Measure = Callable[[Path], FullPrecision | None]
"""Measures the model or adapter saved in a folder; None if its original cannot be loaded."""


def in_full_precision(
    settings: Settings,
    evaluator: LibraryEvaluator,
    prompts: EvaluationPrompts,
    reporter: Reporter,
) -> Measure | None:
    """How to score saved files in full precision, against the original in full precision.

    Args:
        evaluator: That of the search; its model and its scorers are used again.

    Returns:
        None if the model of the search is not quantised.
    """
    if settings.quantization == "none":
        return None
    quantised = evaluator.model

    def measure(folder: Path) -> FullPrecision | None:
        reporter.emit(StageStarted("Scoring in full precision"))
        dtype = str(quantised.dtype).removeprefix("torch.")
        changes = {"quantization": "none", "dtypes": [dtype], "batch_size": quantised.batch_size}
        try:
            original = LibraryModel(settings.replaced(**changes), reporter)
        except HereticError as error:
            reporter.emit(
                Notice(
                    "The saved model is not checked in full precision, in which its original could "
                    f"not be loaded: {error.message}",
                    "warning",
                )
            )
            return None
        original.response_prefix = quantised.response_prefix
        original.renderer.date = quantised.renderer.date
        full = LibraryEvaluator(
            settings, original, None, reporter, prompts, scorers=evaluator.scorers
        )
        before, rounded = full.baseline, full.score_model(quantised)
        full.release()
        original.unload()  # so that only one large model has to fit beside the quantised one
        after = full.score_model(reload(folder, original, reporter))
        reporter.emit(StageFinished(f"{scores_line(after)} (original: {scores_line(before)})"))
        return FullPrecision(before, rounded, after)

    return measure


def packed_anew(
    evaluator: LibraryEvaluator,
    request: ExportRequest,
    prompts: EvaluationPrompts,
    strategy: str,
) -> MeasurePacked:
    """How to measure what packing the edited weights in the base's own format changes.

    The original and the edited model are run now, since verification may move them.

    Args:
        request: What is saved; its plan is applied while the model runs.
    """
    model, good = evaluator.model, prompts.good
    found = quantisation(model.options)
    if found is None or found.saved != "own format" or strategy != "merge" or not good:
        return lambda _: None
    label, plan = found.label, request.trial.plan
    original = model.get_logits_batched(good, report=False)
    with model.edited(plan, request.directions):
        edited = model.get_logits_batched(good, report=False)

    def measure(reloaded: Model) -> Repacked:
        saved = reloaded.get_logits_batched(good, report=False)
        return Repacked(
            label,
            edit=kl_divergence(original, edited),
            rounding=kl_divergence(edited, saved),
            prompts=len(good),
        )

    return measure
