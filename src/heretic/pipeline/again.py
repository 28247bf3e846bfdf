"""Look at a trial again: its replies, and its scores on other prompts or with longer replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from heretic.errors import PromptError
from heretic.events import BROKEN_OFF, StageFinished, StageStarted
from heretic.pipeline.held_out import gaps
from heretic.pipeline.long_replies import declining_scorers, first_prompts
from heretic.pipeline.run import Session
from heretic.pipeline.shown import judged_reply
from heretic.pipeline.stages import scores_line
from heretic.prompts import Prompt
from heretic.records.concerns import concerns
from heretic.records.trial import Score, Trial
from heretic.runs.shown import ORIGINAL, Reply


@dataclass(frozen=True, slots=True)
class ScoredAgain:
    """Scores of the original and of a trial.

    Attributes:
        tokens: Most new tokens of a reply.
        good, bad: Number of prompts.
        warnings: What is worse than in the search, or than the original's, one sentence each.
    """

    tokens: int
    good: int
    bad: int
    before: tuple[Score, ...]
    after: tuple[Score, ...]
    warnings: tuple[str, ...]


def score_again(
    session: Session,
    trial: Trial,
    *,
    held_out: bool = False,
    first: int | None = None,
    tokens: int | None = None,
) -> ScoredAgain:
    """Score a trial and the original on prompts of the run.

    Replies longer than the search's are also scored for late refusals and broken replies.

    Args:
        held_out: Whether to take the held-out prompts; scorers with prompts of their own are then
            left out, since the search used those.
        first: Most prompts of each set, the first ones; by default all.
        tokens: New tokens of a reply; by default as in the search.

    Raises:
        PromptError: There are no held-out prompts, or no scorer for them.
        HereticError: The model cannot be run.
    """
    evaluator, short = session.evaluator, session.settings.max_response_length
    prompts = session.prompts.held_out if held_out else session.prompts.evaluation
    scorers = [one for one in evaluator.scorers if not (held_out and one.sets())]
    if prompts is None or not scorers:
        raise PromptError(
            "The run has no held-out prompts that its scorers could use.",
            remedy="Name some: good_held_out_prompts and bad_held_out_prompts.",
        )
    prompts, tokens = first_prompts(prompts, first), tokens or short
    if tokens > short:
        names = {one.name for one in scorers}
        scorers += [one for one in declining_scorers(evaluator) if one.name not in names]
    count = f"{len(prompts.good)} good and {len(prompts.bad)} bad prompts"
    title = f"Scoring trial {trial.number} on {count}, with replies of up to {tokens} tokens"
    session.reporter.emit(StageStarted(title))
    summary = BROKEN_OFF
    try:
        again = evaluator.on(prompts, scorers, tokens)
        before, [after] = evaluator.score_again(again, [trial.plan])
        summary = scores_line(after)
    finally:  # what comes after it, such as a search that goes on, is none of its time
        session.reporter.emit(StageFinished(summary))
    told = concerns(before, after, short)
    told += gaps(trial.scores, after) if held_out and tokens == short else []
    return ScoredAgain(tokens, len(prompts.good), len(prompts.bad), before, after, tuple(told))


def sample_replies(
    session: Session,
    trials: Sequence[Trial],
    prompts: Sequence[Prompt],
    *,
    tokens: int | None = None,
    original: bool = True,
    on_step: Callable[[int, int], None] | None = None,
) -> Mapping[str, list[Reply]]:
    """Greedy replies of the original and of trials, with what the refusal detector calls each.

    Args:
        tokens: Most new tokens; by default as in the search.
        on_step: As in `Model.get_responses`.

    Returns:
        By `ORIGINAL` and the number of each trial, in the order of the prompts.

    Raises:
        HereticError: The model cannot be run.
    """
    model = session.model

    def replies() -> list[Reply]:
        texts = model.get_responses_batched(
            prompts, max_new_tokens=tokens, on_step=on_step, report=False
        )
        return [
            judged_reply(text, prompt.user) for text, prompt in zip(texts, prompts, strict=True)
        ]

    found = {ORIGINAL: replies()} if original else {}
    for trial in trials:
        with model.edited(trial.plan, session.directions):
            found[str(trial.number)] = replies()
    return found
