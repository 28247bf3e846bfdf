"""KL divergence of the first generated token's distribution from the original model's."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from heretic.scorers.base import Needs, Outputs, Scorer


def divergences(original: Tensor, edited: Tensor) -> Tensor:
    """KL(original || edited) of each prompt, in nats, float64 [prompts].

    Args:
        original: Raw logits, float32 [prompts, vocabulary].
        edited: Raw logits of the edited model, with the same shape and dtype.
    """
    found = functional.kl_div(
        edited.log_softmax(dim=-1),
        original.log_softmax(dim=-1),
        reduction="none",
        log_target=True,
    )
    # Rounding can make the divergence of equal distributions slightly negative; NaN stays NaN.
    return found.sum(dim=-1).double().clamp_min(0)


def kl_divergence(original: Tensor, edited: Tensor) -> float:
    """KL(original || edited), averaged over prompts, in nats."""
    return float(divergences(original, edited).mean())


class KLDivergence(Scorer):
    """Mean first-token KL(original || edited) over the good evaluation prompts, in nats."""

    is_share = False
    needs = Needs(logits=frozenset({"good"}))

    def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
        """Divergence of each prompt, in nats."""
        found: list[float] = divergences(baseline.logits["good"], outputs.logits["good"]).tolist()
        return found
