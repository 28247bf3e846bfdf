"""What a model still can: the likelihood of the right ending among several, or of the last word.

This is what multiple-choice benchmarks measure (HellaSwag: Zellers et al. 2019; PIQA: Bisk et al.
2020; ARC: Clark et al. 2018), and LAMBADA (Paperno et al. 2016) for last words. Nothing is
generated: each item is read once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from heretic.config.tables import Datasets, ItemSpecification
from heretic.errors import ScorerError
from heretic.model.outputs import Endings
from heretic.prompts import Item
from heretic.records.trial import Score
from heretic.scorers.base import Needs, Outputs, PromptSet, Scorer, mean

ITEMS = Path(__file__).with_suffix(".jsonl")
"""The set that comes with Heretic, written for it: an item a line, in no order."""

OWN_ITEMS = ItemSpecification(
    dataset=str(ITEMS), column="context", endings="endings", right="right"
)


class CapabilityOptions(BaseModel):
    """Options of `Capability`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    items: ItemSpecification = Field(
        OWN_ITEMS, description="Contexts with endings; by default the set that comes with Heretic."
    )
    normalization: Literal["characters", "none"] = Field(
        "characters",
        description="What the log-likelihoods of an item's endings are divided by before they are "
        "compared: their characters (acc_norm of the lm-evaluation-harness), or nothing (acc).",
    )


class Capability(Scorer):
    """Share of items that the model gets right.

    An item with several endings is right if the right one's log-likelihood, given the context, is
    greater than any other's, each divided by the ending's number of characters. An item with one
    ending (a last word) is right if greedy decoding gives it. Contexts are read as plain text.
    """

    is_share = True
    Options: ClassVar[type[BaseModel]] = CapabilityOptions

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set = f"{self.name}.items"
        self.needs = Needs(endings=frozenset({self._set}))

    def check(self) -> None:
        """Refuse to search for the model that knows least.

        Raises:
            ScorerError: The score is minimised.
        """
        if self.optimization == "minimize":
            raise ScorerError(
                f"The scorer {self.name} counts right answers, and minimize would look for as few "
                "of them as possible.",
                remedy="Set its `optimization` to maximize, or to none to have it reported.",
            )

    def sets(self) -> Mapping[PromptSet, Datasets]:
        """The items, under the scorer's name."""
        return {self._set: self.options.items}

    def values(self, outputs: Outputs, baseline: Outputs) -> list[bool]:
        """Whether each item is right."""
        items, found = self._items(outputs), outputs.endings[self._set]
        normalized = found.logprobs
        if self.options.normalization == "characters":
            normalized = normalized / _characters(items, found)
        rest = normalized.clone()
        right = torch.tensor([item.right for item in items])[:, None]
        rest.scatter_(1, right, -torch.inf)
        # Of equal likelihoods none is the greatest; places without an ending are NaN.
        best = rest.nan_to_num(nan=-torch.inf, neginf=-torch.inf).max(dim=-1).values
        likelier = normalized.gather(1, right)[:, 0] > best
        greedy = found.greedy.gather(1, right)[:, 0]
        single = torch.tensor([len(item.endings) == 1 for item in items])
        values: list[bool] = torch.where(single, greedy, likelier).tolist()
        return values

    def probabilities(self, outputs: Outputs) -> list[float]:
        """The probability of each right ending: among the item's endings, or as a last word."""
        items, found = self._items(outputs), outputs.endings[self._set]
        right = torch.tensor([item.right for item in items])[:, None]
        logprob = found.logprobs.gather(1, right)[:, 0]
        whole = found.logprobs.nan_to_num(nan=-torch.inf).logsumexp(dim=-1)
        single = torch.tensor([len(item.endings) == 1 for item in items])
        values: list[float] = torch.where(single, logprob, logprob - whole).exp().tolist()
        return values

    def score(self, outputs: Outputs, baseline: Outputs) -> Score:
        """The share; its display text adds the chance level and the mean probability.

        NaN where a likelihood is no number: the model is broken.
        """
        found = super().score(outputs, baseline)
        chance = chance_level(self._items(outputs))
        probability = mean(self.probabilities(outputs))
        return replace(
            found,
            value=found.value if math.isfinite(probability) else math.nan,
            display=f"{found.display} (chance {chance:.0%}, p {probability:.3f})",
        )

    def _items(self, outputs: Outputs) -> list[Item]:
        return [item for item in outputs.prompts[self._set] if isinstance(item, Item)]


def chance_level(items: list[Item]) -> float:
    """The share that guessing gets right: one ending in so many, and no last word."""
    return mean([1 / len(item.endings) if len(item.endings) > 1 else 0.0 for item in items])


def _characters(items: list[Item], found: Endings) -> Tensor:
    """Characters of each ending, float64 [items, endings]; NaN where an item has fewer."""
    lengths = torch.full_like(found.logprobs, torch.nan)
    for row, item in enumerate(items):
        lengths[row, : len(item.endings)] = torch.tensor([float(len(e)) for e in item.endings])
    return lengths
