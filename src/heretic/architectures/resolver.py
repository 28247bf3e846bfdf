"""From a loaded model to its residual writers, checked by a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from heretic.architectures.table import FAMILIES, NOT_YET, Family
from heretic.errors import ModelError, UnsupportedModelError

UNEXPLAINED = 0.02
"""Largest part of a layer's contribution that its writers may leave unexplained, beside what
rounding of the stream itself accounts for; a missed writer or a norm is far above."""

ROUNDINGS = 2
"""Roundings of the stream inside a layer: one for each writer's sum."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A linear map whose output is added to the residual stream.

    Attributes:
        layer: 0-based index of the decoder layer.
        component: The group it is searched with, e.g. `attn.o_proj`.
        name: Dotted path of the module in the model.
        module: The module itself.
        transposed: Whether the module stores [d_in, d_out] (GPT-2's Conv1D).
    """

    layer: int
    component: str
    name: str
    module: nn.Module
    transposed: bool

    def weight(self) -> Tensor:
        """The weight as [d_out, d_in], float32 (or float64 as stored), dequantised.

        Raises:
            ModelError: The weight is not in memory (offloaded to disk).
        """
        stored = _dequantized(self.module)
        if stored.is_meta:
            raise ModelError(
                f"The weight of {self.name} is offloaded to disk.",
                remedy="Give the model more memory (max_memory), or load it quantised.",
            )
        matrix = stored.detach()
        matrix = matrix.T if self.transposed else matrix
        return matrix.to(torch.promote_types(matrix.dtype, torch.float32))

    def bias(self) -> Tensor | None:
        """The bias [d_out], or None."""
        bias = getattr(self.module, "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None


def _dequantized(module: nn.Module) -> Tensor:
    """The module's weight as stored, or dequantised where bitsandbytes packed it."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise UnsupportedModelError(f"{type(module).__name__} has no weight that can be edited.")
    if type(module).__module__.startswith("bitsandbytes"):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        dequantized: Tensor = dequantize_bnb_weight(
            cast("nn.Parameter", weight), state=getattr(module, "state", None)
        )
        return dequantized
    return weight


def _family_of(model: nn.Module) -> Family:
    model_type = str(getattr(getattr(model, "config", None), "model_type", "unknown"))
    if model_type in NOT_YET:
        raise UnsupportedModelError(
            f"Models of type {model_type!r} cannot be edited yet: {NOT_YET[model_type]}.",
            remedy="Dense decoder models work; see docs/models.md.",
        )
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"What writes to the residual stream of a {model_type!r} model is not known.",
            remedy=f"Known types: {', '.join(sorted(FAMILIES))}.",
        )
    return FAMILIES[model_type]


def find_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers in order.

    Raises:
        UnsupportedModelError: The family is unknown, or the module is not where it should be.
    """
    family = _family_of(model)
    try:
        return list(model.get_submodule(family.layers).children())
    except AttributeError as error:
        raise UnsupportedModelError(f"No decoder layers at {family.layers!r}: {error}.") from error


def find_writers(model: nn.Module) -> tuple[Writer, ...]:
    """Every residual writer, by layer, attention first.

    Raises:
        UnsupportedModelError: The family is unknown, or a layer lacks one of its writers.
    """
    family = _family_of(model)
    return tuple(
        _writer(layer, index, f"{family.layers}.{index}", component, path)
        for index, layer in enumerate(find_layers(model))
        for component, path in family.writers
    )


def _writer(layer: nn.Module, index: int, prefix: str, component: str, path: str) -> Writer:
    try:
        module = layer.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"Layer {index} has no {path!r} ({component}): {error}.",
            remedy="Its writers are unlike its family's; nothing was edited.",
        ) from error
    transposed = type(module).__name__ == "Conv1D"
    return Writer(index, component, f"{prefix}.{path}", module, transposed)


def first_tensor(output: Any) -> Tensor:
    """The hidden state in a layer's output, which may be a tuple."""
    tensor = output[0] if isinstance(output, tuple) else output
    if not isinstance(tensor, Tensor):
        raise UnsupportedModelError(f"A layer put out {type(tensor).__name__}, not a tensor.")
    return tensor


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden state a layer was called with."""
    return first_tensor(args or kwargs["hidden_states"])


def verify_writers(
    layers: Iterable[nn.Module], writers: Iterable[Writer], forward: Callable[[], object]
) -> None:
    """Check that each layer adds to the stream what its writers put out, up to one factor.

    Args:
        forward: Runs the model once on any input.

    Raises:
        FloatingPointError: A layer put out NaN or infinity in this dtype.
        UnsupportedModelError: A layer's contribution is not the sum of its writers' outputs, so a
            writer is missing or a norm follows it.
    """
    added: dict[int, Tensor] = {}
    written: dict[int, Tensor] = {}
    rounding: dict[int, float] = {}

    def watch_layer(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before, after = layer_input(args, kwargs), first_tensor(output)
            # The first position often carries activations so large that rounding hides the rest.
            ours = slice(1, None) if after.shape[1] > 1 else slice(None)
            result = after[:, ours].to("cpu", torch.float64)
            added[index] = result - before[:, ours].to("cpu", torch.float64)
            rounding[index] = ROUNDINGS * torch.finfo(after.dtype).eps * float(result.norm())

        return hook

    def watch_writer(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            out = first_tensor(output).to("cpu", torch.float64)
            written[index] = written[index] + out if index in written else out

        return hook

    with ExitStack() as stack, torch.inference_mode():
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(watch_layer(index), with_kwargs=True).remove)
        for writer in writers:
            handle = writer.module.register_forward_hook(watch_writer(writer.layer))
            stack.callback(handle.remove)
        forward()
    for index, contribution in added.items():
        _check_layer(index, contribution, written.get(index), rounding[index])


def _check_layer(index: int, contribution: Tensor, written: Tensor | None, rounding: float) -> None:
    if written is None:
        raise UnsupportedModelError(f"No known residual writer ran in layer {index}.")
    if not contribution.isfinite().all():
        raise FloatingPointError(f"layer {index} put out values that are not finite")
    whole = written.reshape(contribution.shape[0], -1, contribution.shape[-1])
    total = whole[:, -contribution.shape[1] :]
    # Granite and Cohere scale what enters the stream by a constant: linear, so the edit holds.
    factor = (contribution * total).sum() / (total * total).sum().clamp_min(1e-30)
    rest = (contribution - factor * total).norm()
    if not rest < UNEXPLAINED * contribution.norm() + rounding:
        share = float(rest / contribution.norm().clamp_min(1e-30))
        raise UnsupportedModelError(
            f"Layer {index}: {share:.0%} of what it adds to the residual stream does not "
            "come from its known writers (a missing writer, or a norm after one).",
            remedy="Nothing was edited; please report the model type.",
        )
