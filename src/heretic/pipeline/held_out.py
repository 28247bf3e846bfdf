"""Scores of a chosen trial on held-out prompts, kept in the run folder for the next save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heretic.events import Notice, StageFinished, StageStarted
from heretic.export.request import HeldOut
from heretic.pipeline.identity import trial_key
from heretic.pipeline.kept import kept
from heretic.pipeline.stages import scores_line
from heretic.prompts import EvaluationPrompts
from heretic.records.statistics import is_worse
from heretic.records.trial import Score, Trial
from heretic.scorers import Scorer

if TYPE_CHECKING:
    from heretic.pipeline.run import Session

FILE = "held_out.json"


def held_out_scores(session: Session, trial: Trial) -> HeldOut | None:
    """Score a trial on prompts that neither directions nor search used; None if there are none.

    Scorers with prompts of their own are left out, since the search used those prompts. Scores that
    the run folder holds already are read from there.

    Raises:
        RunError: The run folder cannot be written to.
    """
    prompts = session.prompts.held_out
    scorers = tuple(scorer for scorer in session.evaluator.scorers if not scorer.sets())
    if prompts is None or not scorers:
        return None
    session.reporter.emit(StageStarted("Scoring the chosen trial on held-out prompts"))
    found = kept(
        session.folder,
        FILE,
        trial_key(session, prompts, trial),
        lambda: _scored(session, prompts, scorers, trial),
        HeldOut.from_dict,
    )
    told = f"{scores_line(found.after)} (search: {scores_line(trial.scores)})"
    session.reporter.emit(StageFinished(told))
    for text in gaps(trial.scores, found.after):
        session.reporter.emit(Notice(text, level="warning"))
    return found


def gaps(searched: tuple[Score, ...], held_out: tuple[Score, ...]) -> list[str]:
    """What is worse on held-out prompts than chance explains, one sentence for each score."""
    before = {score.name: score for score in searched}
    return [
        f"{score.name} is worse on prompts that the search never saw: {score.with_interval()}, in "
        f"the search {before[score.name].with_interval()}. The search has fitted its own prompts; "
        "believe the held-out figure."
        for score in held_out
        if score.name in before and is_worse(before[score.name], score)
    ]


def _scored(
    session: Session, prompts: EvaluationPrompts, scorers: tuple[Scorer, ...], trial: Trial
) -> HeldOut:
    evaluator = session.evaluator
    before, [after] = evaluator.score_again(evaluator.on(prompts, scorers), [trial.plan])
    return HeldOut(before, after, len(prompts.good), len(prompts.bad))
