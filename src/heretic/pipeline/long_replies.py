"""Score a chosen trial on longer replies than the search's, and by what the search left out.

Short replies hide what comes later: an edited model may begin an answer well and then loop, or
decline after all. The first token's divergence hides what is lost later. The search cannot afford
to look at this; one trial can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from heretic import prompts as prompt_sets
from heretic.errors import HereticError
from heretic.evaluator.library import LibraryEvaluator
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.export.request import LongReplies
from heretic.export.verify import agree
from heretic.pipeline.identity import trial_key
from heretic.pipeline.kept import kept
from heretic.pipeline.stages import scores_line
from heretic.prompts import EvaluationPrompts
from heretic.records.concerns import concerns
from heretic.records.statistics import paired
from heretic.records.trial import Score, Trial
from heretic.refusals import VERSION
from heretic.refusals.text import opens_reasoning
from heretic.scorers import Outputs, Scorer
from heretic.scorers.base import ShowsAt
from heretic.scorers.broken import BrokenReplies
from heretic.scorers.capability import Capability
from heretic.scorers.fidelity import ContinuationKL, GreedyAgreement, ReplyLength
from heretic.scorers.late import LateRefusals
from heretic.scorers.reasoning import RefusalsInReasoning, UnclosedReasoning
from heretic.scorers.replies import ReplyScorer

if TYPE_CHECKING:
    from heretic.model.core import Model
    from heretic.pipeline.run import Session

Scores = tuple[Score, ...]

FILE = "long_replies.json"

TOKENS, TOKENS_OF_REASONING = 256, 512
"""New tokens of a long reply, if the search's are not longer; the latter for models that reason
before they answer."""

CAPABILITY: dict[str, Any] = {}
"""Options of the scorer `capability`: the items that come with Heretic."""

THINKING = 20
"""Prompts on which models that reason are scored with their reasoning, the first ones."""

REPORT = 3
"""Grows when more is measured of a chosen trial, so that figures kept before are not taken."""

FIRST = 50
"""Prompts whose replies are read where several trials, or the saved files, are looked at."""

ALONG = 32
"""Tokens of the original's replies along which the divergence is measured."""


Read = Callable[[int, Outputs, Outputs], None]
"""Takes the tokens of a reply, and the outputs of the original and of the trial."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A trial, and what it is scored with again.

    Attributes:
        evaluator: The search's; its memory is released.
        read: Takes the replies.
    """

    trial: Trial
    evaluator: LibraryEvaluator
    prompts: EvaluationPrompts
    reporter: Reporter
    read: Read | None = None


def judged_by() -> dict[str, int]:
    """What figures of long replies depend on, whatever scorers searched: broken ones are told."""
    return {"detector": VERSION}


def long_replies(
    session: Session, trial: Trial, most: int | None = None, read: Read | None = None
) -> LongReplies | None:
    """As `long_scores`; scores that the run folder holds already are read from there.

    Args:
        most: Number of prompts of each set that are used, the first ones; by default all.
        read: Takes the replies, if they are made and not only scores read.
    """
    prompts = first_prompts(session.prompts.evaluation, most)
    chosen = Chosen(trial, session.evaluator, prompts, session.reporter, read)

    def keep(tokens: int, measure: Callable[[], LongReplies]) -> LongReplies:
        key = trial_key(session, prompts, trial, tokens=tokens, report=REPORT, **judged_by())
        return kept(session.folder, FILE, key, measure, LongReplies.from_dict)

    return long_scores(chosen, keep)


def first_prompts(prompts: EvaluationPrompts, most: int | None) -> EvaluationPrompts:
    """At most that many prompts of each set, the first ones; None means all."""
    more = {name: rows[:most] for name, rows in prompts.more.items()}
    return EvaluationPrompts(prompts.good[:most], prompts.bad[:most], more)


def long_scores(
    chosen: Chosen,
    keep: Callable[[int, Callable[[], LongReplies]], LongReplies] = lambda _, measure: measure(),
) -> LongReplies | None:
    """Score a trial and the original on long replies, and by what the search left out.

    A warning says where the trial's figures are worse than in the search, or more of its replies
    are broken than of the original's. A trial is still saved if this cannot be measured.

    Args:
        keep: Given the tokens of a reply and a function that measures, gives the scores.

    Returns:
        None if no scorer reads replies, or it cannot be measured.
    """
    searched = [scorer for scorer in chosen.evaluator.scorers if scorer.needs.responses]
    if not searched:
        return None
    reporter, short = chosen.reporter, chosen.evaluator.settings.max_response_length
    scorers = [*searched, *_unsearched(chosen.evaluator, searched)]
    try:
        tokens = length_of(chosen.evaluator, chosen.prompts, scorers)
        reporter.emit(StageStarted(f"Scoring the chosen trial on replies of up to {tokens} tokens"))
        found = keep(tokens, lambda: _measured(chosen, scorers, tokens))
    except HereticError as error:
        reporter.emit(
            Notice(f"The chosen trial was not scored on long replies: {error}", "warning")
        )
        return None
    names = {scorer.name for scorer in searched}  # tables show the rest
    before, after = (
        scores_line([score for score in scores if score.name in names])
        for scores in (found.before, found.after)
    )
    reporter.emit(StageFinished(f"{after} (original: {before})"))
    warning = difference(found, chosen.trial.scores, short)
    if warning is not None:
        reporter.emit(Notice(warning, "warning"))
    return found


def length_of(
    evaluator: LibraryEvaluator, prompts: EvaluationPrompts, scorers: Sequence[Scorer]
) -> int:
    """New tokens of a long reply: as set, or what suits the model, as far as it has positions."""
    settings, model = evaluator.settings, evaluator.model
    usual = TOKENS_OF_REASONING if model.reasons else TOKENS
    short, wanted = settings.max_response_length, settings.report_length or usual
    return max(short, _room(model, prompts, scorers, max(short, wanted)))


def late_scorers(evaluator: LibraryEvaluator) -> dict[str, Scorer]:
    """Scorers of late refusals, by name, for those of the search that know the words of one."""
    length = evaluator.settings.max_response_length
    found = [
        LateRefusals(scorer, partial(evaluator.model.first_tokens, count=length))
        for scorer in evaluator.scorers
        if isinstance(scorer, ReplyScorer)
        and isinstance(scorer, ShowsAt)
        and scorer.optimization == "minimize"
    ]
    return {scorer.name: scorer for scorer in found}


def replied_sets(scorers: Sequence[Scorer]) -> frozenset[str]:
    """Names of the prompt sets to which these scorers read replies."""
    return frozenset[str]().union(*(scorer.needs.responses for scorer in scorers))


def declining_scorers(evaluator: LibraryEvaluator) -> list[Scorer]:
    """Scorers of the search that know the words of a refusal, late refusals, and broken replies.

    Empty if no scorer knows such words.
    """
    late = late_scorers(evaluator)
    if not late:
        return []
    searched = [scorer for scorer in evaluator.scorers if f"late_{scorer.name}" in late]
    sets = replied_sets(searched)
    return [*searched, *late.values(), BrokenReplies(evaluator.settings, sets)]


def _unsearched(evaluator: LibraryEvaluator, searched: Sequence[Scorer]) -> list[Scorer]:
    """What is measured of a chosen trial besides the scorers of the search that read replies."""
    settings = evaluator.settings
    sets = replied_sets(searched) | {"good"}
    along = {"tokens": ALONG}
    more: list[Scorer] = [
        *late_scorers(evaluator).values(),
        BrokenReplies(settings, sets),
        ContinuationKL(settings, name="kl_along_replies", optimization="none", options=along),
        GreedyAgreement(settings, name="greedy_agreement", optimization="none", options=along),
        ReplyLength(settings, name="reply_length", optimization="none"),
    ]
    names = {scorer.name for scorer in searched}
    return [scorer for scorer in more if scorer.name not in names]


def _measured(chosen: Chosen, scorers: Sequence[Scorer], tokens: int) -> LongReplies:
    before, after = _before_after(chosen, scorers, tokens, chosen.read)
    more = [_capability(chosen), _when_thinking(chosen, scorers, tokens)]
    before = before + tuple(score for pair in more for score in pair[0])
    return LongReplies(tokens, before, after + tuple(score for pair in more for score in pair[1]))


def _capability(chosen: Chosen) -> tuple[Scores, Scores]:
    """Whether the models still choose right endings, unless the run's scorers measure that.

    A model that cannot read the items, for lack of positions or tokens, has no such figure.
    """
    before: Scores = ()
    after: Scores = ()
    try:
        for scorers, prompts in _items(chosen.evaluator):
            before, after = _before_after(replace(chosen, prompts=prompts), scorers, 1)
    except HereticError as error:
        chosen.reporter.emit(Notice(f"Capability was not measured: {error}", "warning"))
    return before, after


def _items(evaluator: LibraryEvaluator) -> list[tuple[list[Scorer], EvaluationPrompts]]:
    """The scorer of capability with its items; nothing if it is one of the search's already."""
    if any(isinstance(scorer, Capability) for scorer in evaluator.scorers):
        return []
    scorer = Capability(
        evaluator.settings, name="capability", optimization="none", options=CAPABILITY
    )
    sets = {name: prompt_sets.load(found) for name, found in scorer.sets().items()}
    return [([scorer], EvaluationPrompts((), (), sets))]


def _before_after(
    chosen: Chosen, scorers: Sequence[Scorer], tokens: int, read: Read | None = None
) -> tuple[Scores, Scores]:
    """Scores of the original and of the trial."""
    other = chosen.evaluator.on(chosen.prompts, scorers, tokens)

    def seen(plan: int, outputs: Outputs) -> None:
        if read is not None:
            read(tokens, other.baseline_outputs, outputs)

    before, [after] = chosen.evaluator.score_again(other, [chosen.trial.plan], seen)
    return before, after


def _when_thinking(chosen: Chosen, scorers: Sequence[Scorer], tokens: int) -> tuple[Scores, Scores]:
    """Scores with the reasoning that the search skips, of models that reason; else none."""
    model, settings = chosen.evaluator.model, chosen.evaluator.settings
    words = [
        one
        for one in scorers
        if isinstance(one, ReplyScorer) and isinstance(one, ShowsAt) and one.set == "bad"
    ]
    if not model.reasons or not words:
        return (), ()
    few = replace(chosen, prompts=first_prompts(chosen.prompts, THINKING))
    with model.thinking():
        opened = opens_reasoning(model.prompt_text("Hi"))
        own = [
            UnclosedReasoning(settings, {"bad"}, opened=opened),
            RefusalsInReasoning(settings, {"bad"}, opened=opened),
        ]
        found = _before_after(few, [*words, *own], tokens)
    before, after = (
        tuple(replace(score, name=f"{score.name}_thinking") for score in scores) for scores in found
    )
    return before, after


def _room(model: Model, prompts: EvaluationPrompts, scorers: Sequence[Scorer], wanted: int) -> int:
    """The new tokens for which every prompt leaves room in the model's positions."""
    if model.limits.positions is None:
        return wanted
    sets = replied_sets(scorers)
    rows = model.encode_rows([prompt for name in sets for prompt in prompts.by_name()[name]])
    return min(wanted, model.limits.positions - max(map(len, rows), default=0))


class OfModels:
    """Long replies and capability of an original, and then of a model judged against it.

    The original is scored at once, so that it may be unloaded before the other is loaded.

    Args:
        evaluator: Of the original.
    """

    def __init__(
        self, evaluator: LibraryEvaluator, prompts: EvaluationPrompts, reporter: Reporter
    ) -> None:
        settings, self._reporter = evaluator.settings, reporter
        searched = [scorer for scorer in evaluator.scorers if scorer.needs.responses]
        scorers = [*searched, *_unsearched(evaluator, searched)]
        self._tokens = length_of(evaluator, prompts, scorers)
        told = f"Scoring {settings.model} on replies of up to {self._tokens} tokens"
        reporter.emit(StageStarted(told))
        evaluator.release()  # so that only one cache has to fit into memory
        self._evaluators = [
            evaluator.on(sets, some, self._tokens)
            for some, sets in ((scorers, prompts), *_items(evaluator))
        ]
        self._before: Scores = ()
        for one in self._evaluators:
            self._before += one.baseline
            one.release()
        reporter.emit(StageFinished())

    @classmethod
    def begun(
        cls, evaluator: LibraryEvaluator, prompts: EvaluationPrompts, reporter: Reporter
    ) -> OfModels | None:
        """One with the original's scores; None, with a warning, if it cannot be scored so."""
        try:
            return cls(evaluator, prompts, reporter)
        except HereticError as error:
            reporter.emit(Notice(f"Long replies and capability: not scored: {error}", "warning"))
            return None

    def judged(self, model: Model, name: str) -> LongReplies | None:
        """Score another model, by its name for messages; None, with a warning, if it fails."""
        told = f"Scoring {name} on replies of up to {self._tokens} tokens"
        self._reporter.emit(StageStarted(told))
        try:
            after: Scores = sum((one.score_model(model) for one in self._evaluators), ())
        except HereticError as error:
            text = f"Long replies and capability: not scored: {error}"
            self._reporter.emit(Notice(text, "warning"))
            return None
        self._reporter.emit(StageFinished())
        return LongReplies(self._tokens, self._before, after)


def difference(found: LongReplies, searched: Sequence[Score], short: int) -> str | None:
    """One sentence on what long replies show and the search did not; None if there is nothing.

    Args:
        searched: The search's scores of the trial.
        short: New tokens of a reply in the search.
    """
    read = {score.name: len(score.values) for score in found.after}
    known = {
        score.name: of_first(score, read[score.name]) for score in searched if score.name in read
    }
    parts = [
        f"{score.name} is {score.display} (in the search, at {short} tokens: "
        f"{known[score.name].display})"
        for score in found.after
        if score.name in known
        and _worse(known[score.name], score)
        and not agree(known[score.name], score, read[score.name])
    ]
    parts += concerns(found.before, found.after, short)
    if not parts:
        return None
    return (
        f"With replies of up to {found.tokens} tokens the chosen trial is worse than it seemed: "
        f"{'; '.join(parts)}. Look at its replies, or choose another trial."
    )


def of_first(score: Score, count: int) -> Score:
    """A score on its first prompts alone, where it is known of each of them."""
    if not count or len(score.values) <= count:
        return score
    values = score.values[:count]
    return replace(score, value=sum(values) / count, values=values)


def _worse(searched: Score, measured: Score) -> bool:
    first, second = searched.objective(), measured.objective()
    return first is not None and second is not None and not second <= first


def from_disk(
    evaluator: LibraryEvaluator,
    prompts: EvaluationPrompts,
    found: LongReplies | None,
    reporter: Reporter,
) -> Callable[[Model], LongReplies | None]:
    """How to add scores of a reloaded model to those of a trial on long replies.

    The weights of files are rounded, an edit of a running model is not. Only replies to the first
    prompts are written, each until its verdict is final, which takes a fraction of the time that
    the trial's took.

    Args:
        evaluator: That of the search; its scorers of replies are used again.
        found: The trial's.

    Returns:
        A function that gives None if there is nothing to add: no scorer knows the words of a
        refusal, or they cannot be scored.
    """

    def measure(model: Model) -> LongReplies | None:
        scorers = declining_scorers(evaluator)
        if found is None or not scorers:
            return None
        reporter.emit(StageStarted(f"Reading its replies of up to {found.tokens} tokens"))
        few = first_prompts(prompts, FIRST)
        try:
            scores = evaluator.on(few, scorers, found.tokens).score_alone(model)
        except HereticError as error:
            text = f"The saved model was not scored on long replies: {error}"
            reporter.emit(Notice(text, "warning"))
            return None
        reporter.emit(StageFinished(scores_line(scores)))
        for text in differing(found.after, scores):
            reporter.emit(Notice(text, "warning"))
        return replace(found, saved=scores)

    return measure


def differing(searched: tuple[Score, ...], saved: tuple[Score, ...]) -> list[str]:
    """Sentences on scores of files that differ from a trial's beyond chance.

    Long replies part at the first token that rounding changes, so single ones may differ.

    Args:
        searched: Scores of the trial on these prompts and, if there are more, on the others.
    """
    others = {score.name: score for score in searched}
    texts = []
    for score in saved:
        if score.name in others:
            before = of_first(others[score.name], len(score.values))
            test = paired(before.values, score.values)
            if test is not None and test.tells_apart:
                texts.append(
                    f"{score.name} of the saved model's long replies is {score.display}; with the "
                    f"edit applied while running it was {round(sum(before.values))}."
                )
    return texts
