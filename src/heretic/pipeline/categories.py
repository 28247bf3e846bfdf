"""Figures of a chosen trial by category of the prompts, and on the categories that are spared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from heretic.evaluator.library import LibraryEvaluator
from heretic.events import StageFinished, StageStarted, whole_stages
from heretic.export.request import HeldOut
from heretic.pipeline.identity import trial_key
from heretic.pipeline.kept import kept
from heretic.pipeline.stages import scores_line
from heretic.prompts import EvaluationPrompts, Prompt
from heretic.records.categories import CategoryTable, category_rows
from heretic.records.trial import Score, Trial
from heretic.scorers import PromptSet, Scorer

if TYPE_CHECKING:
    from heretic.pipeline.run import Session

FILE = "spared.json"


def category_tables(
    session: Session, trial: Trial, held_out: HeldOut | None = None
) -> tuple[CategoryTable, ...]:
    """The shares of a trial by category: on the prompts of the search, held-out ones, spared ones.

    Only scores that are shares of the replies to one prompt set have such tables, and only sets
    with categories. Figures on spared prompts are measured at the first call, and read from the
    run folder after it.

    Args:
        held_out: The trial's scores on the held-out prompts; None leaves them out.

    Raises:
        RunError: The run folder cannot be written to.
    """
    scorers, prompts = session.evaluator.scorers, session.prompts
    before = session.evaluator.baseline
    tables = tables_of("evaluation", scorers, prompts.evaluation, before, trial.scores)
    if held_out is not None and prompts.held_out is not None:
        pair = held_out.before, held_out.after
        tables += tables_of("held_out", scorers, prompts.held_out, *pair)
    spared = spared_scores(session, trial)
    if spared is not None:
        rows = EvaluationPrompts((), prompts.spared)
        tables += tables_of("spared", scorers, rows, spared.before, spared.after)
    return tables


def spared_scores(session: Session, trial: Trial) -> HeldOut | None:
    """Score the original and a trial on the bad prompts of the categories that `keep` names.

    Neither the directions nor the search has used these prompts as bad ones.

    Returns:
        None if there are no such prompts, or no scorer reads the replies to bad prompts alone.

    Raises:
        RunError: The run folder cannot be written to.
    """
    spared = session.prompts.spared
    evaluator = evaluator_on_spared(session.evaluator, spared)
    if evaluator is None:
        return None
    with whole_stages(session.reporter) as reporter:
        reporter.emit(StageStarted("Scoring the chosen trial on the spared categories"))

        def measure() -> HeldOut:
            before, [after] = session.evaluator.score_again(evaluator, [trial.plan])
            return HeldOut(before, after, 0, len(spared))

        key = trial_key(session, EvaluationPrompts((), spared), trial)
        found = kept(session.folder, FILE, key, measure, HeldOut.from_dict)
        told = f"{scores_line(found.after)} (original: {scores_line(found.before)})"
        reporter.emit(StageFinished(told))
    return found


def evaluator_on_spared(
    like: LibraryEvaluator, spared: Sequence[Prompt]
) -> LibraryEvaluator | None:
    """An evaluator whose bad prompts are the spared ones, with the scorers that read them alone.

    Args:
        like: The evaluator whose model, directions and scorers it shares.

    Returns:
        None if there are no such prompts, or no such scorer.
    """
    scorers = [one for one in like.scorers if _set_of(one) == "bad"]
    if not spared or not scorers:
        return None
    return like.on(EvaluationPrompts((), spared), scorers)


def tables_of(
    what: str,
    scorers: Sequence[Scorer],
    prompts: EvaluationPrompts,
    before: Sequence[Score],
    after: Sequence[Score],
) -> tuple[CategoryTable, ...]:
    """A table for each score that is a share of the replies to one prompt set with categories.

    Args:
        what: Which prompts; see `CategoryTable.prompts`.
        before: Scores of the unedited model, with their values.
        after: Scores of the edited model, with their values.
    """
    return tuple(_found_tables(what, scorers, prompts.by_name(), before, after))


def _found_tables(
    what: str,
    scorers: Sequence[Scorer],
    prompts: Mapping[PromptSet, Sequence[Prompt]],
    before: Sequence[Score],
    after: Sequence[Score],
) -> Iterator[CategoryTable]:
    old, new = ({score.name: score for score in scores} for scores in (before, after))
    for scorer in scorers:
        rows = prompts.get(_set_of(scorer) or "", ())
        categories = [prompt.category for prompt in rows]
        pair = [scores[scorer.name] for scores in (old, new) if scorer.name in scores]
        if (
            any(categories)
            and len(pair) == 2
            and all(score.is_count and len(score.values) == len(rows) for score in pair)
        ):
            found = category_rows(categories, pair[0].values, pair[1].values)
            yield CategoryTable(scorer.name, what, found)


def _set_of(scorer: Scorer) -> PromptSet | None:
    """The one prompt set whose replies a scorer reads; None if it reads none, or several."""
    needs = scorer.needs
    if len(needs.responses) != 1 or needs.first_tokens:
        return None
    return next(iter(needs.responses))
