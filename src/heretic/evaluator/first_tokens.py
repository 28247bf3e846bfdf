"""What scorers read of the first tokens of one prompt set, collected pass by pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from heretic.engine.prefill import Pair
from heretic.scorers.kl_divergence import divergences_in_float32

OnDevice = Callable[[torch.device], Tensor]
"""A tensor on any device."""


def kept_on_device(tensor: Tensor, known: dict[torch.device, Tensor]) -> OnDevice:
    """The tensor on devices to which it is copied once.

    Args:
        known: The copies so far.
    """

    def on(device: torch.device) -> Tensor:
        if device not in known:
            known[device] = tensor.to(device)
        return known[device]

    return on


class FirstTokens:
    """Divergences and logits of several plans on one set.

    Divergences are computed where a pass leaves its logits, and wait there until all are known, so
    that an accelerator is waited for once.

    Args:
        plans: What they are called.
        prompts: Number of prompts of the set.
        original: Gives raw logits of the unedited model, float32 [prompts, vocabulary], on a
            device; None if divergences are not wanted.
        copies: Whether logits are wanted in main memory.
    """

    def __init__(
        self, plans: Sequence[int], prompts: int, original: OnDevice | None, *, copies: bool
    ) -> None:
        self._plans, self._prompts = plans, prompts
        self._original, self._copies = original, copies
        self._divergences = torch.empty(0)
        self._logits: list[Tensor] = []

    def take(self, pairs: Sequence[Pair], logits: Tensor) -> None:
        """Take the raw logits of some rows, [rows, vocabulary], in the model's dtype.

        Args:
            pairs: Which plan, of those here, and which prompt each row has.
        """
        plans, prompts = map(list, zip(*pairs, strict=True))
        if self._original is not None:
            if not len(self._divergences):
                size = len(self._plans), self._prompts
                self._divergences = torch.empty(size, device=logits.device)
            index = torch.tensor(prompts, device=logits.device)
            found = divergences_in_float32(self._original(logits.device), logits, index)
            self._divergences[plans, prompts] = found
        if self._copies:
            if not self._logits:
                shape = self._prompts, logits.shape[-1]
                self._logits = [torch.empty(shape) for _ in self._plans]
            for plan in sorted(set(plans)):
                chosen = [row for row, one in enumerate(plans) if one == plan]
                own = logits if len(chosen) == len(plans) else logits[chosen]
                self._logits[plan][[prompts[row] for row in chosen]] = own.float().cpu()

    def divergences(self) -> dict[int, Tensor]:
        """By plan, float64 [prompts], in main memory; empty if they are not wanted."""
        if self._original is None:
            return {}
        return dict(zip(self._plans, self._divergences.cpu().double(), strict=True))

    def logits(self) -> dict[int, Tensor]:
        """By plan, float32 [prompts, vocabulary]; empty if they are not wanted."""
        return dict(zip(self._plans, self._logits, strict=False))
