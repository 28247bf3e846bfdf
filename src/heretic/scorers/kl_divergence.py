"""KL divergence of the first generated token's distribution from the original model's."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from heretic.scorers.base import Needs, Outputs, Scorer


def kl_divergence(original: Tensor, edited: Tensor) -> float:
    """KL(original || edited), averaged over prompts, in nats.

    Args:
        original: Raw logits, float32 [prompts, vocabulary].
        edited: The same of the edited model.
    """
    divergence = functional.kl_div(
        edited.log_softmax(dim=-1),
        original.log_softmax(dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    # Rounding can leave equal distributions a hair below zero.
    return max(float(divergence), 0.0) if divergence.isfinite() else float(divergence)


class KLDivergence(Scorer):
    """KL(original || edited) over the good evaluation prompts."""

    needs: ClassVar[Needs] = Needs(logits=frozenset({"good"}))

    def measure(self, outputs: Outputs, baseline: Outputs) -> tuple[float, str]:
        """Nats per prompt."""
        value = kl_divergence(baseline.logits["good"], outputs.logits["good"])
        return value, f"{value:.4f}"
