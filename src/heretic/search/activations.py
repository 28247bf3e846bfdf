"""Memory of the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from heretic.model.core import Model
from heretic.model.hooks import replaced
from heretic.system.machine import total_memory

ACTIVATION_FACTOR = 34
"""Bytes that a layer keeps for its backward pass, per token and unit of the hidden size, in half
precision (Korthikanti et al. 2022, arXiv 2205.05198, section 4.1, without the attention scores)."""

MEMORY_SHARE = 0.25
"""Share of total memory that activations may take; beyond it, layers are computed twice instead."""


@contextmanager
def lean(model: Model, rows: Sequence[Sequence[int]]) -> Iterator[None]:
    """Compute layers again in the backward pass if activations would need too much memory.

    Args:
        rows: The token ids that are read together.
    """
    tokens = len(rows) * max(map(len, rows))
    per_token = ACTIVATION_FACTOR / 2 * model.hidden_size * model.dtype.itemsize
    if tokens * per_token * model.n_layers < MEMORY_SHARE * total_memory(model.device):
        yield
        return
    with ExitStack() as stack:
        for layer in model.get_layers():
            stack.enter_context(_recomputed(layer))
        yield


def _recomputed(layer: nn.Module) -> AbstractContextManager[None]:
    """Keep only a layer's input for the backward pass (Chen et al. 2016, arXiv 1604.06174)."""
    forward = layer.forward

    def again(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return replaced(layer, again)
