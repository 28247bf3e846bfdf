"""KL divergence of the first generated token's distribution from the original model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from heretic.scorers.base import Needs, Outputs, Scorer

ELEMENTS_AT_ONCE = 1 << 20
"""Logits of which divergences are computed together; each takes memory four times over."""


def divergences(original: Tensor, edited: Tensor) -> Tensor:
    """KL(original || edited) of each prompt, in nats, float64 [prompts].

    Args:
        original: Raw logits, float32 [prompts, vocabulary].
        edited: Raw logits of the edited model, with the same shape.
    """
    return divergences_in_float32(original, edited).double()


def divergences_in_float32(original: Tensor, edited: Tensor, index: Tensor | None = None) -> Tensor:
    """`divergences` on any device, of which some do not know float64; float32 [rows].

    Args:
        original: Raw logits, [prompts, vocabulary].
        edited: Raw logits, [rows, vocabulary], in any dtype.
        index: The prompt of each row, int64 [rows]; None: they are in the order of the prompts.
    """
    index = torch.arange(len(original), device=original.device) if index is None else index
    rows = max(1, ELEMENTS_AT_ONCE // edited.shape[-1])
    parts = zip(torch.split(index, rows), torch.split(edited, rows), strict=True)
    return torch.cat([_divergences(original[part], after) for part, after in parts])


def _divergences(original: Tensor, edited: Tensor) -> Tensor:
    found = functional.kl_div(
        edited.float().log_softmax(dim=-1),
        original.float().log_softmax(dim=-1),
        reduction="none",
        log_target=True,
    )
    # Rounding can make the divergence of equal distributions slightly negative; NaN stays NaN.
    return found.sum(dim=-1).clamp_min(0)


def kl_divergence(original: Tensor, edited: Tensor) -> float:
    """KL(original || edited), averaged over prompts, in nats."""
    return float(divergences(original, edited).mean())


class KLDivergence(Scorer):
    """Mean first-token KL(original || edited) over the good evaluation prompts, in nats."""

    is_share = False
    needs = Needs(divergences=frozenset({"good"}))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a subclass that measures anew have logits, as long as it does not say what it needs.

        Plugins of earlier releases read them by what this scorer needed then.
        """
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if ("measure" in own or "values" in own) and "needs" not in own:
            cls.needs = Needs(logits=frozenset({"good"}))

    def values(self, outputs: Outputs, baseline: Outputs) -> Sequence[float]:
        """Divergence of each prompt, in nats."""
        found = outputs.divergences.get("good")
        if found is None:  # such as the original's own outputs, or those of a file of llama.cpp
            found = divergences(baseline.logits["good"], outputs.logits["good"])
        shown: list[float] = found.tolist()
        return shown
