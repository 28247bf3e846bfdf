"""Damage that the first token does not show: what becomes of whole replies, and of other text.

The first three go along text that is there already, in one forward pass, and cost little. The last
two compare replies, which have to be generated on the good prompts too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from heretic.config.tables import DatasetSpecification
from heretic.records.trial import Score
from heretic.scorers.base import Needs, Outputs, PromptSet, Scorer, mean
from heretic.system.optional import require


class Tokens(BaseModel):
    """How far to look."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens: int = Field(16, ge=1, description="Tokens of each of the original's replies.")


class _AlongReplies(Scorer):
    """Goes along the original's own greedy replies to the good evaluation prompts."""

    Options: ClassVar[type[BaseModel]] = Tokens

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.needs = Needs(continuations={"good": self.options.tokens})


class ContinuationKL(_AlongReplies):
    """KL(original || edited) of each of the first tokens of the original's own replies.

    Teacher-forced: the edited model is asked, after each token of the original's reply, what comes
    next. With `tokens` = 1 it is the divergence of the first token.
    """

    def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
        """Nats per token of each prompt."""
        found = outputs.continuations["good"].divergence[:, : self.options.tokens]
        values: list[float] = found.double().nanmean(dim=-1).tolist()
        return values


class GreedyAgreement(_AlongReplies):
    """How far the edited model's greedy replies agree with the original's, token by token.

    The share of the first `tokens` tokens before the two part for the first time.
    """

    def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
        """Share of each prompt, between 0 and 1."""
        agreement = outputs.continuations["good"].agreement[:, : self.options.tokens]
        there = ~agreement.isnan()
        together = torch.nan_to_num(agreement, 0.0).cumprod(dim=-1).sum(dim=-1)
        values: list[float] = (together / there.sum(dim=-1)).tolist()
        return values

    def shown(self, values: Sequence[float]) -> str:
        """In percent."""
        return f"{mean(values):.1%}"


class Texts(BaseModel):
    """What is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    texts: DatasetSpecification = Field(description="Texts of any kind, one a row.")
    max_tokens: int = Field(512, ge=2, description="Longer texts are cut there.")


class Perplexity(Scorer):
    """What an edit does to the perplexity of texts: the mean change of nats per token.

    Its exponential is the ratio of perplexities, shown beside the perplexity. Each text weighs the
    same.
    """

    Options: ClassVar[type[BaseModel]] = Texts

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set = f"{self.name}.texts"
        self.needs = Needs(texts={self._set: self.options.max_tokens})

    def sets(self) -> Mapping[PromptSet, DatasetSpecification]:
        """The texts."""
        return {self._set: self.options.texts}

    def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
        """Nats per token that each text has become more surprising; texts of one token count 0."""
        after, before = outputs.readings[self._set], baseline.readings[self._set]
        change = (after.nll - before.nll) / after.tokens.clamp_min(1)
        values: list[float] = change.tolist()
        return values

    def score(self, outputs: Outputs, baseline: Outputs) -> Score:
        """The change; people read the perplexity and its ratio."""
        found = super().score(outputs, baseline)
        read = outputs.readings[self._set]
        perplexity = math.exp(float(read.nll.sum()) / max(int(read.tokens.sum()), 1))
        return replace(found, display=f"{perplexity:.2f} (x{math.exp(found.value):.3f})")


class ReplyLength(Scorer):
    """How many characters longer the replies to good prompts have become."""

    needs = Needs(responses=frozenset({"good"}))

    def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
        """Characters that each reply has gained."""
        pairs = zip(outputs.responses["good"], baseline.responses["good"], strict=True)
        return [float(len(after) - len(before)) for after, before in pairs]

    def shown(self, values: Sequence[float]) -> str:
        """With its sign."""
        return f"{mean(values):+.1f} characters"


class SimilarityOptions(BaseModel):
    """Which similarity."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    metric: Literal["chrf", "bleu", "rouge"] = Field(
        "chrf", description="chrf, bleu (sacrebleu, by sentence) or rouge (ROUGE-L, F measure)."
    )


class ReplySimilarity(Scorer):
    """How like the original's the edited model's replies to good prompts are, from 0 to 100.

    chrF after Popovic 2015 and BLEU after Papineni et al. 2002, both by sacrebleu; ROUGE-L after
    Lin 2004. The original's reply is the reference. Replies drift apart by small chances, so read
    differences between trials, not the figure itself.
    """

    Options: ClassVar[type[BaseModel]] = SimilarityOptions
    needs = Needs(responses=frozenset({"good"}))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Read the options.

        Raises:
            HereticError: The package that computes the metric is missing.
        """
        super().__init__(*args, **kwargs)
        self._alike = _metric(self.options.metric, f"The scorer {self.name}")

    def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
        """Similarity of each reply."""
        pairs = zip(outputs.responses["good"], baseline.responses["good"], strict=True)
        return [100.0 if after == before else self._alike(after, before) for after, before in pairs]

    def shown(self, values: Sequence[float]) -> str:
        """One decimal, as such figures are given."""
        return f"{mean(values):.1f}"


def _metric(name: str, purpose: str) -> Callable[[str, str], float]:
    """(reply, reference) -> similarity."""
    if name == "rouge":
        module = require("rouge_score.rouge_scorer", extra="fidelity", purpose=purpose)
        rouge = module.RougeScorer(["rougeL"])
        return lambda reply, other: 100 * float(rouge.score(other, reply)["rougeL"].fmeasure)
    sacrebleu = require("sacrebleu", extra="fidelity", purpose=purpose)
    sentence = sacrebleu.sentence_chrf if name == "chrf" else sacrebleu.sentence_bleu
    return lambda reply, other: float(sentence(reply, [other]).score)
