"""A chosen trial, scored on held-out prompts, saved and checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from heretic import export
from heretic.evaluator.library import LibraryEvaluator
from heretic.events import StageFinished, StageStarted
from heretic.harness.store import figures_of
from heretic.pipeline.run import Session
from heretic.pipeline.stages import scores_line
from heretic.records.trial import Score, Trial


@dataclass(frozen=True, slots=True)
class Exported:
    """What a saved model scores.

    Attributes:
        saved: Of the files, loaded from disk again, on the evaluation prompts.
        held_out: On held-out prompts, where there are any.
    """

    saved: tuple[Score, ...]
    held_out: export.HeldOut | None


def export_trial(session: Session, trial: Trial, destination: Path, strategy: str) -> Exported:
    """Score a trial on held-out prompts, save it, reload it from disk and score it once more.

    Raises:
        ExportError: It cannot be saved, or does not score as in the search.
        RunError: A file with benchmark results is damaged.
    """
    # Before minutes of scoring.
    export.check_export(session.model, destination, strategy, session.settings.max_rank)
    request = replace(
        session.request(trial),
        benchmarks=figures_of(session.folder.path, trial),  # a damaged file is said first
        held_out=held_out_scores(session, trial),
    )
    export.save(session.model, request, destination, strategy=strategy, reporter=session.reporter)
    scores = export.verify(destination, request, session.evaluator, session.reporter)
    return Exported(scores, request.held_out)


def held_out_scores(session: Session, trial: Trial) -> export.HeldOut | None:
    """A trial on prompts that neither directions nor search saw; None if there are none.

    Scorers that bring prompts along are left out: theirs are what the search has seen.
    """
    prompts = session.prompts.held_out
    scorers = tuple(scorer for scorer in session.evaluator.scorers if not scorer.sets())
    if prompts is None or not scorers:
        return None
    session.evaluator.release()  # two caches need not fit side by side
    session.reporter.emit(StageStarted("Scoring the chosen trial on held-out prompts"))
    evaluator = LibraryEvaluator(
        session.settings,
        session.model,
        session.directions,
        session.reporter,
        prompts,
        scorers=scorers,  # as they are: a local judge need not be loaded twice
    )
    before, after = evaluator.baseline, evaluator.evaluate([trial.plan])[0]
    evaluator.release()
    session.reporter.emit(
        StageFinished(f"{scores_line(after)} (search: {scores_line(trial.scores)})")
    )
    return export.HeldOut(before, after, len(prompts.good), len(prompts.bad))
