"""Plans under evaluation: what is known of each, and whether its evaluation can end early.

Cheap scores come first. A plan that is certain to be dominated cannot reach the front, so the rest
of its evaluation is skipped ("racing", after Maron & Moore 1994; here the bounds are certain, not
statistical, so racing does not change the front of a fixed list of plans).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from heretic.model.outputs import Continuation, Endings, Reading
from heretic.prompts import Prompt
from heretic.records.trial import Score, dominates, objectives
from heretic.scorers import Needs, Outputs, PromptSet, Scorer


def needs(scorers: Sequence[Scorer]) -> Needs:
    """What all scorers together need."""
    wanted = [scorer.needs for scorer in scorers]
    return Needs(
        logits=frozenset().union(*(one.logits for one in wanted)),
        responses=frozenset().union(*(one.responses for one in wanted)),
        continuations=_longest(one.continuations for one in wanted),
        texts=_longest(one.texts for one in wanted),
        endings=frozenset().union(*(one.endings for one in wanted)),
        divergences=frozenset().union(*(one.divergences for one in wanted)),
    )


def _longest(lengths: Iterable[Mapping[PromptSet, int]]) -> dict[PromptSet, int]:
    found: dict[PromptSet, int] = {}
    for one in lengths:
        for name, length in one.items():
            found[name] = max(length, found.get(name, 0))
    return found


class Race:
    """Collects the outputs of several plans, and scores them as soon as possible.

    Args:
        scorers: In the order of the scores.
        baseline: The unedited model's outputs; without them outputs are gathered, not scored.
        sizes: Number of prompts in each set.
        plans: Number of plans.
        rivals: Objectives of earlier trials; None lets every plan finish. The collection is not
            copied: what is added to it later counts as well.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        baseline: Outputs | None,
        sizes: Mapping[PromptSet, int],
        plans: int = 1,
        rivals: Collection[tuple[float, ...]] | None = None,
    ) -> None:
        self._scorers = scorers
        self._baseline = baseline
        self._rivals = rivals
        self._done: list[tuple[float, ...]] = []  # objectives of these plans
        self._logits: list[dict[PromptSet, Tensor]] = [{} for _ in range(plans)]
        self._divergences: list[dict[PromptSet, Tensor]] = [{} for _ in range(plans)]
        replied = needs(scorers).responses
        self._replies: list[dict[PromptSet, list[str | None]]] = [
            {name: [None] * sizes[name] for name in replied} for _ in range(plans)
        ]
        self._continuations: list[dict[PromptSet, Continuation]] = [{} for _ in range(plans)]
        self._readings: list[dict[PromptSet, Reading]] = [{} for _ in range(plans)]
        self._endings: list[dict[PromptSet, Endings]] = [{} for _ in range(plans)]
        self._scores: list[dict[str, Score]] = [{} for _ in range(plans)]
        self._settled: set[int] = set()

    def take_logits(self, plan: int, name: PromptSet, logits: Tensor) -> None:
        """Store first-token logits, float32 [prompts, vocabulary]."""
        self._logits[plan][name] = logits
        self._advance(plan)

    def take_divergences(self, plan: int, name: PromptSet, found: Tensor) -> None:
        """Store how far first tokens are from the unedited model's, float64 [prompts]."""
        self._divergences[plan][name] = found
        self._advance(plan)

    def take_continuation(self, plan: int, name: PromptSet, found: Continuation) -> None:
        """Store a plan's teacher-forced outputs on the original's replies."""
        self._continuations[plan][name] = found
        self._advance(plan)

    def take_reading(self, plan: int, name: PromptSet, found: Reading) -> None:
        """Store a plan's outputs on texts."""
        self._readings[plan][name] = found
        self._advance(plan)

    def take_endings(self, plan: int, name: PromptSet, found: Endings) -> None:
        """Store the likelihoods of items' endings."""
        self._endings[plan][name] = found
        self._advance(plan)

    def take_reply(self, plan: int, name: PromptSet, prompt: int, text: str) -> bool:
        """Store a reply; returns whether the evaluation of the plan goes on."""
        replies = self._replies[plan][name]
        replies[prompt] = text
        if None not in replies:
            self._advance(plan)
        else:
            self._settle(plan)
        return plan not in self._settled

    def is_settled(self, plan: int) -> bool:
        """Whether the plan's evaluation has ended: it is dominated, or a score is not finite."""
        return plan in self._settled

    def outputs(self, plan: int, prompts: Mapping[PromptSet, Sequence[Prompt]]) -> Outputs:
        """All outputs of a plan that has finished."""
        return replace(self._so_far(plan), prompts=prompts)

    def _so_far(self, plan: int) -> Outputs:
        """The outputs known so far; a set of replies only if it is complete."""
        replies = {name: _whole(r) for name, r in self._replies[plan].items() if None not in r}
        return Outputs(
            prompts={} if self._baseline is None else self._baseline.prompts,
            logits=self._logits[plan],
            responses=replies,
            continuations=self._continuations[plan],
            readings=self._readings[plan],
            endings=self._endings[plan],
            divergences=self._divergences[plan],
        )

    def scores(self) -> list[tuple[Score, ...]]:
        """Scores of each plan; bounds where its evaluation ended early."""
        return [tuple(self._known(plan)) for plan in range(len(self._scores))]

    def _known(self, plan: int) -> list[Score]:
        """Known scores, and bounds of objectives that are not known yet."""
        scores = self._scores[plan]
        return [
            scores.get(scorer.name) or scorer.bound(self._replies[plan])
            for scorer in self._scorers
            if scorer.name in scores or scorer.optimization != "none"
        ]

    def _advance(self, plan: int) -> None:
        """Compute scores whose outputs are complete, and drop logits that no other scorer reads."""
        if self._baseline is None:
            return
        logits, scores = self._logits[plan], self._scores[plan]
        outputs = self._so_far(plan)
        for scorer in self._scorers:
            if scorer.name not in scores and scorer.needs.are_met(outputs):
                scores[scorer.name] = scorer.score(outputs, self._baseline)
        waiting = [scorer for scorer in self._scorers if scorer.name not in scores]
        read = needs(waiting).logits
        self._logits[plan] = {name: rows for name, rows in logits.items() if name in read}
        if self._rivals is not None and not waiting:
            self._done.append(objectives(self._known(plan)))
        self._settle(plan)

    def _settle(self, plan: int) -> None:
        """End a plan's evaluation if it is certain to be dominated or has a non-finite score."""
        if not all(score.is_sound for score in self._scores[plan].values()):
            self._settled.add(plan)
        if self._rivals is None or len(self._scores[plan]) == len(self._scorers):
            return
        best = objectives(self._known(plan))
        if any(dominates(rival, best) for rival in (*self._rivals, *self._done)):
            self._settled.add(plan)


def _whole(replies: Sequence[str | None]) -> list[str]:
    return [reply for reply in replies if reply is not None]
