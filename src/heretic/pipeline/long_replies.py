"""Score a chosen trial on longer replies than the search's.

Short replies hide what comes later: an edited model may begin an answer well and then loop, or
decline after all. The search cannot afford long replies; one trial can.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from heretic.errors import HereticError
from heretic.evaluator.library import LibraryEvaluator
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.export import LongReplies
from heretic.export.verify import agree
from heretic.pipeline.identity import trial_key
from heretic.pipeline.kept import kept
from heretic.pipeline.stages import scores_line
from heretic.prompts import EvaluationPrompts
from heretic.records.trial import Score, Trial
from heretic.scorers import Scorer
from heretic.scorers.broken import BrokenReplies

if TYPE_CHECKING:
    from heretic.pipeline.run import Session

FILE = "long_replies.json"

TOKENS = 128
"""New tokens of a long reply, if the search's are not longer."""

FEW = 0.03
"""Share of replies that may be broken beyond the original's without a warning."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A trial, and what it is scored with again.

    Attributes:
        evaluator: The search's; its memory is released.
    """

    trial: Trial
    evaluator: LibraryEvaluator
    prompts: EvaluationPrompts
    directions: Tensor
    reporter: Reporter


def long_replies(session: Session, trial: Trial, most: int | None = None) -> LongReplies | None:
    """As `long_scores`; scores that the run folder holds already are read from there.

    Args:
        most: Number of prompts of each set that are used, the first ones; by default all.
    """
    prompts = _first(session.prompts.evaluation, most)
    chosen = Chosen(trial, session.evaluator, prompts, session.directions, session.reporter)

    def keep(tokens: int, measure: Callable[[], LongReplies]) -> LongReplies:
        key = trial_key(session, prompts, trial, tokens=tokens)
        return kept(session.folder, FILE, key, measure, LongReplies.from_dict)

    return long_scores(chosen, keep)


def _first(prompts: EvaluationPrompts, most: int | None) -> EvaluationPrompts:
    more = {name: rows[:most] for name, rows in prompts.more.items()}
    return EvaluationPrompts(prompts.good[:most], prompts.bad[:most], more)


def long_scores(
    chosen: Chosen,
    keep: Callable[[int, Callable[[], LongReplies]], LongReplies] = lambda _, measure: measure(),
) -> LongReplies | None:
    """Score a trial and the original on replies of at least `TOKENS` new tokens.

    A warning says where the trial's figures are worse than in the search, or more of its replies
    are broken than of the original's. A trial is still saved if this cannot be measured.

    Args:
        keep: Given the tokens of a reply and a function that measures, gives the scores.

    Returns:
        None if no scorer reads replies, or it cannot be measured.
    """
    scorers = [scorer for scorer in chosen.evaluator.scorers if scorer.needs.responses]
    if not scorers:
        return None
    sets = frozenset().union(*(scorer.needs.responses for scorer in scorers))
    reporter, short = chosen.reporter, chosen.evaluator.settings.max_response_length
    try:
        tokens = max(short, _room(chosen, sets, max(short, TOKENS)))
        reporter.emit(StageStarted(f"Scoring the chosen trial on replies of up to {tokens} tokens"))
        found = keep(tokens, lambda: _measured(chosen, scorers, sets, tokens))
    except HereticError as error:
        reporter.emit(
            Notice(f"The chosen trial was not scored on long replies: {error}", "warning")
        )
        return None
    told = f"{scores_line(found.after)} (original: {scores_line(found.before)})"
    reporter.emit(StageFinished(told))
    warning = difference(found, chosen.trial.scores, short)
    if warning is not None:
        reporter.emit(Notice(warning, "warning"))
    return found


def _measured(
    chosen: Chosen, scorers: Sequence[Scorer], sets: Collection[str], tokens: int
) -> LongReplies:
    searched = chosen.evaluator
    searched.release()  # so that only one cache has to fit into memory
    evaluator = LibraryEvaluator(
        searched.settings,
        searched.model,
        chosen.directions,
        chosen.reporter,
        chosen.prompts,
        scorers=[*scorers, BrokenReplies(searched.settings, sets)],
        max_response_length=tokens,
    )
    before, after = evaluator.baseline, evaluator.evaluate([chosen.trial.plan])[0]
    evaluator.release()
    return LongReplies(tokens, before, after)


def _room(chosen: Chosen, sets: Collection[str], wanted: int) -> int:
    """The new tokens for which every prompt leaves room in the model's positions."""
    model, prompts = chosen.evaluator.model, chosen.prompts.by_name()
    if model.limits.positions is None:
        return wanted
    rows = model.encode_rows([prompt for name in sets for prompt in prompts[name]])
    return min(wanted, model.limits.positions - max(map(len, rows), default=0))


def difference(found: LongReplies, searched: Sequence[Score], short: int) -> str | None:
    """One sentence on what long replies show and the search did not; None if there is nothing.

    Args:
        searched: The search's scores of the trial.
        short: New tokens of a reply in the search.
    """
    broken = _broken(found.before), _broken(found.after)
    known = {score.name: _of_first(score, len(broken[1].values)) for score in searched}
    parts = [
        f"{score.name} is {score.display} (in the search, at {short} tokens: "
        f"{known[score.name].display})"
        for score in found.after
        if score.name in known
        and _worse(known[score.name], score)
        and not agree(known[score.name], score, len(broken[1].values))
    ]
    before, after = broken
    if sum(after.values) - sum(before.values) > max(1, FEW * len(after.values)):
        parts.append(f"{after.display} replies are broken (of the original's: {before.display})")
    if not parts:
        return None
    return (
        f"With replies of up to {found.tokens} tokens the chosen trial is worse than it seemed: "
        f"{'; '.join(parts)}. Look at its replies, or choose another trial."
    )


def _broken(scores: Sequence[Score]) -> Score:
    return next(score for score in scores if score.name == "broken_replies")


def _of_first(score: Score, count: int) -> Score:
    """A score on its first prompts alone, where it is known of each of them."""
    if len(score.values) <= count:
        return score
    values = score.values[:count]
    return replace(score, value=sum(values) / count, values=values)


def _worse(searched: Score, measured: Score) -> bool:
    first, second = searched.objective(), measured.objective()
    return first is not None and second is not None and not second <= first
