"""Layers with several residual streams, and the one residual that represents them.

A writer's output is added to every stream, with a factor for each, and between layers the streams
are mixed with factors per token. So a direction that no writer writes enters no stream. Directions
are found in one vector per token (`reduced`):

- Hyper-connections: the mean. All streams begin as the embedding, and all writers have positive
  factors. Streams are mixed by doubly stochastic matrices, which do not change the mean. So the
  mean is an ordinary residual stream: the incoming one plus the writers.
- AltUp: the active stream. Layers read it and compute what to add to it; the other streams are
  corrected accordingly.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from heretic.architectures.table import SEVERAL_STREAMS, STREAMS
from heretic.errors import UnsupportedModelError


def carries_several(layer: nn.Module) -> bool:
    """Whether layers of this class are known to carry several streams."""
    return type(layer).__name__ in STREAMS


def rows_first(layer: nn.Module, tensor: Tensor) -> Tensor:
    """A layer's input or output with rows and tokens as its first axes, a view."""
    known = STREAMS.get(type(layer).__name__)
    return tensor if known is None or known.axis is None else tensor.movedim(known.axis, 2)


def as_layer_takes(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Undo `rows_first`: a view in the layer's own order of axes."""
    known = STREAMS.get(type(layer).__name__)
    return tensor if known is None or known.axis is None else tensor.movedim(2, known.axis)


def side_by_side(layer: nn.Module, tensor: Tensor, hidden: int) -> Tensor:
    """The streams in a layer's input or output, a view [rows, tokens, streams, hidden].

    Args:
        layer: The decoder layer.
        tensor: The layer's input or output.
        hidden: Width of one stream.

    Raises:
        UnsupportedModelError: The layer has several streams in an unknown order.
    """
    known = STREAMS.get(type(layer).__name__)
    found = rows_first(layer, tensor)
    if found.ndim == 3 and found.shape[-1] % hidden == 0 and (known is None or known.axis is None):
        found = found.reshape(*found.shape[:2], -1, hidden)
    if found.ndim != 4 or found.shape[-1] != hidden or (known is None and found.shape[-2] != 1):
        raise UnsupportedModelError(
            f"Layers of type {type(layer).__name__} cannot be edited: {SEVERAL_STREAMS}.",
            remedy="docs/models.md lists what can be edited.",
        )
    return found


def reduced(layer: nn.Module, streams: Tensor) -> Tensor:
    """The residual [..., hidden] that represents the streams [..., streams, hidden]."""
    known = STREAMS.get(type(layer).__name__)
    if streams.shape[-2] == 1:
        return streams.squeeze(-2)
    if known is None or not known.active:
        return streams.mean(dim=-2)
    return streams.select(-2, int(getattr(cast("Any", layer).config, known.active)))
