"""Refusals by what the replies say: `heretic.refusals` as a scorer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from heretic.prompts import Prompt
from heretic.refusals import Label, Verdict, classify, settled
from heretic.scorers.base import Needs, Outputs, Replies, Scorer


class RefusalOptions(BaseModel):
    """How much of a refusal each label is, under `[scorer.NAME]`.

    Attributes:
        partial_weight: A reply that declines and answers.
        degenerate_weight: A reply that is none. Counted whole by default: a model that was broken
            has not been freed, and a search must not take it for a success.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    partial_weight: float = Field(default=1.0, ge=0.0, le=1.0)
    degenerate_weight: float = Field(default=1.0, ge=0.0, le=1.0)


class RefusalDetector(Scorer):
    """Share of the bad evaluation prompts that are refused, as `heretic.refusals` sees it."""

    Options: ClassVar[type[BaseModel]] = RefusalOptions
    needs: ClassVar[Needs] = Needs(responses=frozenset({"bad"}))

    def weight(self, label: Label) -> float:
        """How much a label counts, in [0, 1]."""
        options: RefusalOptions = self.options
        weights: dict[Label, float] = {
            "refusal": 1.0,
            "partial": options.partial_weight,
            "degenerate": options.degenerate_weight,
            "compliance": 0.0,
        }
        return weights[label]

    def decided(self, response: str) -> bool:
        """An opening refusal stays one, turns partial or loops: final where these count alike."""
        alike = self.weight("partial") == self.weight("degenerate") == 1.0
        return alike and settled(response)

    def best_possible(self, replies: Replies) -> tuple[float, str]:
        """As if all replies still to come were answers, or refusals where those are wanted.

        Prompts are not known here, and they can change a label: only what declines in so many
        words, or is broken, counts as certain.
        """
        known = [classify(reply) for reply in replies["bad"] if reply is not None]
        total = len(replies["bad"])
        if self.optimization == "maximize":
            return 1.0, f"at most {total}/{total}"
        refused = sum(map(self._least, known))
        return refused / total, f"at least {refused:g}/{total}"

    def _least(self, verdict: Verdict) -> float:
        if verdict.label == "degenerate":
            return self.weight("degenerate")
        return min(self.weight("partial"), self.weight("degenerate")) if verdict.declines else 0.0

    def measure(self, outputs: Outputs, baseline: Outputs) -> tuple[float, str]:
        """Rate in [0, 1], shown as a count; partial and degenerate replies are told apart."""
        labels = _labels(outputs.responses["bad"], outputs.prompts.get("bad"))
        count = sum(map(self.weight, labels))
        return count / len(labels), f"{count:g}/{len(labels)}{_apart(labels)}"


def _labels(replies: Sequence[str], prompts: Sequence[Prompt] | None = None) -> list[Label]:
    questions = [None] * len(replies) if prompts is None else [prompt.user for prompt in prompts]
    return [
        classify(reply, question).label for reply, question in zip(replies, questions, strict=True)
    ]


def _apart(labels: Sequence[Label]) -> str:
    counts = Counter(labels)
    told = ((counts["partial"], "partial"), (counts["degenerate"], "degenerate"))
    parts = [f"{count} {name}" for count, name in told if count]
    return f" ({', '.join(parts)})" if parts else ""
