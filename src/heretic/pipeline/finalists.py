"""Score the trials that the menu proposes on long replies, before the user chooses one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heretic.events import StageFinished, StageStarted, whole_stages
from heretic.pipeline.identity import trial_key
from heretic.pipeline.kept import kept
from heretic.pipeline.long_replies import (
    FIRST,
    declining_scorers,
    first_prompts,
    judged_by,
    length_of,
    replied_sets,
)
from heretic.prompts import EvaluationPrompts
from heretic.records.trial import Score, Trial
from heretic.scorers import Scorer

if TYPE_CHECKING:
    from heretic.pipeline.run import Session

FILE = "finalists.json"


@dataclass(frozen=True, slots=True)
class Finalists:
    """Scores of a few trials on long replies to some of the search's prompts.

    Attributes:
        tokens: Most new tokens of a reply.
        prompts: Number of bad prompts.
        before: Scores of the unedited model.
        after: Scores of each trial, by its number.
    """

    tokens: int
    prompts: int
    before: tuple[Score, ...]
    after: Mapping[int, tuple[Score, ...]]

    def to_dict(self, *, with_values: bool = False) -> dict[str, Any]:
        """JSON-ready form; without values of single prompts by default."""
        return {
            "tokens": self.tokens,
            "prompts": self.prompts,
            "before": [score.to_dict(with_values=with_values) for score in self.before],
            "after": {
                str(number): [score.to_dict(with_values=with_values) for score in scores]
                for number, scores in self.after.items()
            },
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Finalists:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: It is malformed.
        """
        return cls(
            tokens=int(record["tokens"]),
            prompts=int(record["prompts"]),
            before=tuple(map(Score.from_dict, record["before"])),
            after={
                int(number): tuple(map(Score.from_dict, scores))
                for number, scores in record["after"].items()
            },
        )


def score_finalists(session: Session, trials: Sequence[Trial]) -> Finalists | None:
    """Score trials together on long replies, each of which ends once its verdict is final.

    Scores that the run folder holds already are read from there.

    Returns:
        None if no scorer of the search recognises declining in a reply's words.

    Raises:
        HereticError: They cannot be scored.
    """
    scorers = declining_scorers(session.evaluator)
    if not scorers:
        return None
    prompts = first_prompts(session.prompts.evaluation, FIRST)
    sets = replied_sets(scorers)
    tokens = length_of(session.evaluator, prompts, scorers)
    count = sum(len(prompts.by_name()[name]) for name in sets)
    started = f"Scoring {len(trials)} trials on {count} replies of up to {tokens} tokens"
    with whole_stages(session.reporter) as reporter:
        reporter.emit(StageStarted(started))
        keys = [
            trial_key(session, prompts, trial, tokens=tokens, **judged_by()) for trial in trials
        ]
        found = kept(
            session.folder,
            FILE,
            " ".join(keys),
            lambda: _measured(session, trials, prompts, scorers, tokens, count),
            Finalists.from_dict,
        )
        reporter.emit(StageFinished())
    return found


def _measured(
    session: Session,
    trials: Sequence[Trial],
    prompts: EvaluationPrompts,
    scorers: Sequence[Scorer],
    tokens: int,
    count: int,
) -> Finalists:
    other = session.evaluator.on(prompts, scorers, tokens)
    plans = [trial.plan for trial in trials]
    before, after = session.evaluator.score_again(other, plans)
    numbers = [trial.number for trial in trials]
    return Finalists(tokens, count, before, dict(zip(numbers, after, strict=True)))
