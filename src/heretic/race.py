"""Plans under evaluation: what is known of each, and whether the rest is worth knowing.

Cheap scores come first. A plan that is dominated whatever it still becomes cannot reach the front,
so the rest of its evaluation is saved ("racing", after Maron & Moore 1994; here the bounds are
certain, not statistical, so the front of a fixed list of plans is the same without it).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from heretic.prompts import Prompt
from heretic.records import Score, dominates, objectives
from heretic.scorers import Needs, Outputs, PromptSet, Scorer


def needs(scorers: Sequence[Scorer]) -> Needs:
    """What all scorers together need."""
    return Needs(
        logits=frozenset().union(*(scorer.needs.logits for scorer in scorers)),
        responses=frozenset().union(*(scorer.needs.responses for scorer in scorers)),
    )


class Race:
    """Several plans on their way to scores.

    Args:
        scorers: In the order of the scores.
        baseline: The unedited model's outputs; without them outputs are gathered, not scored.
        sizes: Prompts in each set.
        plans: How many plans there are.
        rivals: Objectives that others have reached; None lets every plan finish.
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
        self._rivals = None if rivals is None else list(rivals)
        self._logits: list[dict[PromptSet, Tensor]] = [{} for _ in range(plans)]
        replied = needs(scorers).responses
        self._replies: list[dict[PromptSet, list[str | None]]] = [
            {name: [None] * sizes[name] for name in replied} for _ in range(plans)
        ]
        self._scores: list[dict[str, Score]] = [{} for _ in range(plans)]
        self._settled: set[int] = set()

    def take_logits(self, plan: int, name: PromptSet, logits: Tensor) -> None:
        """File first-token logits, float32 [prompts, vocabulary]."""
        self._logits[plan][name] = logits
        self._advance(plan)

    def take_reply(self, plan: int, name: PromptSet, prompt: int, text: str) -> bool:
        """File a reply; whether the plan goes on."""
        replies = self._replies[plan][name]
        replies[prompt] = text
        if None not in replies:
            self._advance(plan)
        else:
            self._settle(plan)
        return plan not in self._settled

    def is_settled(self, plan: int) -> bool:
        """Whether the plan is dominated whatever comes."""
        return plan in self._settled

    def outputs(self, plan: int, prompts: Mapping[PromptSet, Sequence[Prompt]]) -> Outputs:
        """All outputs of a plan that has finished."""
        responses = {name: _whole(replies) for name, replies in self._replies[plan].items()}
        return Outputs(prompts=prompts, logits=self._logits[plan], responses=responses)

    def scores(self) -> list[tuple[Score, ...]]:
        """Scores of each plan; bounds where the evaluation was ended."""
        return [tuple(self._known(plan)) for plan in range(len(self._scores))]

    def _known(self, plan: int) -> list[Score]:
        """Scores and, of objectives that have none yet, bounds."""
        scores = self._scores[plan]
        return [
            scores.get(scorer.name) or scorer.bound(self._replies[plan])
            for scorer in self._scorers
            if scorer.name in scores or scorer.optimization != "none"
        ]

    def _advance(self, plan: int) -> None:
        """Score what can be scored, and let go of logits that nobody reads any more."""
        if self._baseline is None:
            return
        logits, scores = self._logits[plan], self._scores[plan]
        replies = {name: _whole(r) for name, r in self._replies[plan].items() if None not in r}
        outputs = Outputs(self._baseline.prompts, logits, replies)
        for scorer in self._scorers:
            ready = scorer.needs.logits <= set(logits) and scorer.needs.responses <= set(replies)
            if ready and scorer.name not in scores:
                scores[scorer.name] = scorer.score(outputs, self._baseline)
        waiting = [scorer for scorer in self._scorers if scorer.name not in scores]
        read = needs(waiting).logits
        self._logits[plan] = {name: rows for name, rows in logits.items() if name in read}
        if self._rivals is not None and not waiting:
            self._rivals.append(objectives(self._known(plan)))
        self._settle(plan)

    def _settle(self, plan: int) -> None:
        """Drop a plan that is dominated whatever comes, or whose scores are not even finite."""
        if not all(math.isfinite(score.value) for score in self._scores[plan].values()):
            self._settled.add(plan)
        if self._rivals is None or len(self._scores[plan]) == len(self._scorers):
            return
        best = objectives(self._known(plan))
        if any(dominates(rival, best) for rival in self._rivals):
            self._settled.add(plan)


def _whole(replies: Sequence[str | None]) -> list[str]:
    return [reply for reply in replies if reply is not None]
