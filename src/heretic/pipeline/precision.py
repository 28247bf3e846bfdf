"""Scores in full precision, for what was searched on a quantised model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from heretic import export
from heretic.config.settings import Settings
from heretic.errors import HereticError
from heretic.evaluator.library import LibraryEvaluator
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.export.verify import reload
from heretic.model.library import LibraryModel
from heretic.pipeline.stages import scores_line
from heretic.prompts import EvaluationPrompts

Measure = Callable[[Path], export.FullPrecision | None]
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

    def measure(folder: Path) -> export.FullPrecision | None:
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
        return export.FullPrecision(before, rounded, after)

    return measure
