"""Residuals, projections and first-token logits of a batch, as little as is asked for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from heretic.architectures.resolver import first_tensor, hidden_size, layer_input
from heretic.architectures.streams import reduced, side_by_side

TOLERANCES = {2: 0.05, 4: 1e-5, 8: 1e-8}
"""Largest accepted KL divergence from a plain forward, in nats, by the dtype's bytes per number:
rounding stays far below it, a wrong mask or position gives far more."""


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count from 0 at each row's first real token, int64 [rows, tokens]."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp_min(0)


def forward_arguments(
    model: nn.Module, attention_mask: Tensor, logits_to_keep: int = 1
) -> dict[str, Any]:
    """Arguments of a prefill, besides the input ids, that the model's forward accepts."""
    accepted = inspect.signature(model.forward).parameters
    offered: dict[str, Any] = {"attention_mask": attention_mask, "logits_to_keep": logits_to_keep}
    if not _counts_positions(model):
        offered["position_ids"] = position_ids(attention_mask)
    return {name: value for name, value in offered.items() if name in accepted}


_counting: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _counts_positions(model: nn.Module) -> bool:
    """Whether a model computes positions itself, from another number than 0 (RoBERTa)."""
    if model not in _counting:
        name = "create_position_ids_from_input_ids"
        _counting[model] = any(hasattr(module, name) for module in model.modules())
    return _counting[model]


def last_logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Raw logits after the last position, float32 [rows, vocabulary]; inputs are padded left."""
    return tail_logits(model, input_ids, attention_mask, 1)[:, -1].float()


@torch.inference_mode()
def tail_logits(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, positions: int
) -> Tensor:
    """Raw logits after each of the last positions, [rows, positions, vocabulary].

    The logits have the model's dtype and stay on its device; inputs are padded left.
    """
    arguments = forward_arguments(model, attention_mask, positions)
    output = model(input_ids=input_ids, use_cache=False, **arguments)
    logits: Tensor = output.logits[:, -positions:]
    return logits


@torch.inference_mode()
def last_residuals(
    model: nn.Module, layers: Sequence[nn.Module], input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """Outputs of the embedding and of every layer at the last position.

    Where layers carry several streams, they are reduced to one (`architectures.streams`). The last
    layer's output is taken before the final norm; `output_hidden_states` has it only after that.

    Returns:
        float32 [rows, layers + 1, hidden], on the CPU.

    Raises:
        RuntimeError: The forward pass did not run every layer.
    """

    def last(layer: nn.Module, index: int, streams: Tensor) -> Tensor:
        return reduced(layer, streams[:, -1].to("cpu", torch.float32))

    return torch.stack(_at_layers(model, layers, input_ids, attention_mask, last), dim=1)


@torch.inference_mode()
def projections(
    model: nn.Module,
    layers: Sequence[nn.Module],
    input_ids: Tensor,
    attention_mask: Tensor,
    directions: Tensor,
) -> Tensor:
    """Products of the residual of every token with the direction of every layer.

    Only the products are kept, so that long texts need no more memory than their forward pass.

    Args:
        directions: [layers + 1, hidden]; row 0 belongs to the embedding, row l + 1 to layer l.

    Returns:
        float32 [rows, layers + 1, tokens], on the CPU. Where layers carry several streams, the
        residual is that of `last_residuals`.

    Raises:
        RuntimeError: The forward pass did not run every layer.
    """

    def along(layer: nn.Module, index: int, streams: Tensor) -> Tensor:
        residuals = reduced(layer, streams.to(torch.float32))
        return (residuals @ directions[index].to(residuals)).cpu()

    return torch.stack(_at_layers(model, layers, input_ids, attention_mask, along), dim=1)


def _at_layers(
    model: nn.Module,
    layers: Sequence[nn.Module],
    input_ids: Tensor,
    attention_mask: Tensor,
    read: Callable[[nn.Module, int, Tensor], Tensor],
) -> list[Tensor]:
    """What `read` makes of the embedding and of every layer's output in one forward pass.

    Args:
        read: Called with the layer, the row of the result, and [rows, tokens, streams, hidden].

    Raises:
        RuntimeError: The forward pass did not run every layer.
    """
    rows: list[Tensor | None] = [None] * (len(layers) + 1)
    width = hidden_size(model)

    def keep(index: int, layer: nn.Module, tensor: Tensor) -> None:
        rows[index] = read(layer, index, side_by_side(layer, tensor, width))

    def before_first(module: nn.Module, args: Any, kwargs: Any) -> None:
        keep(0, module, layer_input(args, kwargs))

    def after(index: int) -> Callable[..., None]:
        return lambda module, args, output: keep(index, module, first_tensor(output))

    with ExitStack() as stack:
        handle = layers[0].register_forward_pre_hook(before_first, with_kwargs=True)
        stack.callback(handle.remove)
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(after(index + 1)).remove)
        arguments = forward_arguments(model, attention_mask)
        model(input_ids=input_ids, use_cache=False, **arguments)
    captured = [row for row in rows if row is not None]
    if len(captured) != len(rows):
        raise RuntimeError(f"{len(rows) - len(captured)} layers did not run in the forward pass")
    return captured


def divergence(original: Tensor, other: Tensor) -> float:
    """Largest KL(original || other) of any row of logits, in nats; infinite if not finite."""
    left, right = (x.double().log_softmax(dim=-1).cpu() for x in (original, other))
    found = (left.exp() * (left - right)).sum(dim=-1).max()
    return float(found) if found.isfinite() else math.inf
