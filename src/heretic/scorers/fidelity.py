"""Damage that the first token does not show: changes in whole replies and on other texts.

The first three scorers run existing text through the model in one forward pass, which costs little.
The last two compare replies, which then have to be generated for the good prompts too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from heretic.config.tables import Datasets
from heretic.records.trial import Score
from heretic.scorers.base import Needs, Outputs, PromptSet, Scorer, mean
from heretic.system.optional import require


class Tokens(BaseModel):
    """Options of the scorers along the original's replies."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    tokens: int = Field(16, ge=1, description="Tokens of each of the original's replies.")


class _AlongReplies(Scorer):
    """Reads teacher-forced outputs along the original's replies to good evaluation prompts."""

    is_share = False
    Options: ClassVar[type[BaseModel]] = Tokens

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.needs = Needs(continuations={"good": self.options.tokens})


class ContinuationKL(_AlongReplies):
    """Mean KL(original || edited) over the first tokens of the original's replies, in nats.

    Teacher-forced: both models predict each token from the original's tokens before it. With
    `tokens` = 1 it is the divergence of the first token.
    """

    def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
        """Mean divergence for each prompt, in nats per token."""
        found = outputs.continuations["good"].divergence[:, : self.options.tokens]
        values: list[float] = found.double().nanmean(dim=-1).tolist()
        return values


class GreedyAgreement(_AlongReplies):
    """How long the edited model's greedy replies agree with the original's.

    The share of the first `tokens` tokens that come before the first difference.
    """

    def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
        """Share for each prompt, between 0 and 1."""
        agreement = outputs.continuations["good"].agreement[:, : self.options.tokens]
        there = ~agreement.isnan()
        together = torch.nan_to_num(agreement, 0.0).cumprod(dim=-1).sum(dim=-1)
        values: list[float] = (together / there.sum(dim=-1)).tolist()
        return values

    def shown(self, values: Sequence[float]) -> str:
        """The mean in percent."""
        return f"{mean(values):.1%}"


class Texts(BaseModel):
    """Options of `Perplexity`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    texts: Datasets = Field(description="Texts of any kind, one a row.")
    max_tokens: int = Field(512, ge=2, description="Longer texts are cut there.")


class Perplexity(Scorer):
    """The change of texts' negative log-likelihood in nats per token; all texts weigh the same.

    The display text holds its exponential, the ratio of perplexities, beside the perplexity.
    """

    is_share = False
    Options: ClassVar[type[BaseModel]] = Texts

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set = f"{self.name}.texts"
        self.needs = Needs(texts={self._set: self.options.max_tokens})

    def sets(self) -> Mapping[PromptSet, Datasets]:
        """The texts, under the scorer's name."""
        return {self._set: self.options.texts}

    def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
        """Change for each text, in nats per token; 0 for a text of one token."""
        after, before = outputs.readings[self._set], baseline.readings[self._set]
        change = (after.nll - before.nll) / after.tokens.clamp_min(1)
        values: list[float] = change.tolist()
        return values

    def score(self, outputs: Outputs, baseline: Outputs) -> Score:
        """The mean change; its display text gives the perplexity and the ratio."""
        found = super().score(outputs, baseline)
        read = outputs.readings[self._set]
        perplexity = math.exp(float(read.nll.sum()) / max(int(read.tokens.sum()), 1))
        return replace(found, display=f"{perplexity:.2f} (x{math.exp(found.value):.3f})")


class ReplyLength(Scorer):
    """Mean change in the length of replies to good prompts, in characters."""

    is_share = False
    needs = Needs(responses=frozenset({"good"}))

    def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
        """Change in the length of each reply, in characters."""
        pairs = zip(outputs.responses["good"], baseline.responses["good"], strict=True)
        return [float(len(after) - len(before)) for after, before in pairs]

    def shown(self, values: Sequence[float]) -> str:
        """The mean with its sign."""
        return f"{mean(values):+.1f} characters"


class SimilarityOptions(BaseModel):
    """Options of `ReplySimilarity`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    metric: Literal["chrf", "bleu", "rouge"] = Field(
        "chrf", description="chrf, bleu (sacrebleu, by sentence) or rouge (ROUGE-L, F measure)."
    )


class ReplySimilarity(Scorer):
    """Similarity of the edited model's replies to the original's, on good prompts, from 0 to 100.

    chrF after Popovic 2015 and BLEU after Papineni et al. 2002, both by sacrebleu; ROUGE-L after
    Lin 2004. The original's reply is the reference. Replies diverge after any small difference, so
    compare trials with each other, and do not read the figure by itself.
    """

    is_share = False
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
        """Similarity of each reply, from 0 to 100."""
        pairs = zip(outputs.responses["good"], baseline.responses["good"], strict=True)
        return [100.0 if after == before else self._alike(after, before) for after, before in pairs]

    def shown(self, values: Sequence[float]) -> str:
        """The mean with one decimal, as is usual for these metrics."""
        return f"{mean(values):.1f}"


def _metric(name: str, purpose: str) -> Callable[[str, str], float]:
    """A function (reply, reference) -> similarity, from 0 to 100."""
    if name == "rouge":
        module = require("rouge_score.rouge_scorer", extra="fidelity", purpose=purpose)
        rouge = module.RougeScorer(["rougeL"])
        return lambda reply, other: 100 * float(rouge.score(other, reply)["rougeL"].fmeasure)
    sacrebleu = require("sacrebleu", extra="fidelity", purpose=purpose)
    sentence = sacrebleu.sentence_chrf if name == "chrf" else sacrebleu.sentence_bleu
    return lambda reply, other: float(sentence(reply, [other]).score)
