"""Masks that are given to a model ready-made."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Masks = Tensor | Mapping[str, Tensor | None] | None
"""Masks of a forward pass: one for all layers, or one for each kind of layer, as transformers names
it. That of attention is bool [rows, tokens, columns], True where a token sees a column of the
cache. That of a recurrence is bool [rows, tokens], False where a token is padding; None if none is.
"""


def as_forwards_take(masks: Masks, device: torch.device, dtype: torch.dtype) -> object:
    """The masks as transformers' forwards take them, on the device."""
    if isinstance(masks, Mapping):
        return {kind: _as_taken(mask, device, dtype) for kind, mask in masks.items()}
    return _as_taken(masks, device, dtype)


def _as_taken(mask: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    if mask is None:
        return None
    if is_of_recurrence(mask):
        return mask.to(device, torch.long)
    unseen = ~mask.to(device).unsqueeze(1)
    added = torch.zeros_like(unseen, dtype=dtype)  # every attention takes such masks
    return added.masked_fill_(unseen, torch.finfo(dtype).min)


def is_of_recurrence(masks: Masks) -> bool:
    """Whether there is a single mask, and it is that of a recurrence."""
    return masks is None or (isinstance(masks, Tensor) and masks.ndim == 2)
