"""Logit lens of directions: which tokens a direction of the residual stream makes likelier.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens". There a residual goes through the
final norm and the output head. A direction has no scale of its own, so here only what the norm does
per channel is applied, its gain, and the subtraction of the mean where the norm subtracts it. The
division by the residual's size, an added bias, and what follows the head (soft-capping, a scale)
are left out: they change all tokens' figures alike, keep their order, or say nothing of the
direction. What later layers make of the direction is not in these figures either.

What lies between the last layer and the head is measured, not looked up by name: chosen vectors go
in as the last layer's output, and the head's input is read. So a gain that is stored as its
difference from 1 (Gemma) comes out right.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from heretic.architectures.resolver import first_tensor
from heretic.architectures.streams import carries_several
from heretic.errors import UnsupportedModelError
from heretic.model.capture import forward_arguments
from heretic.model.reading import PromptReader

TOLERANCE = 0.02
"""Relative difference from a gain per channel that rounding in half precision explains."""

ROWS = 16_384
"""Rows of the output head that are converted to float32 at once."""


@dataclass(frozen=True)
class Readout:
    """What the way from the last layer to the output head does to a direction.

    Attributes:
        gain: Factor of each channel, float32 [hidden], on the CPU.
        centers: Whether the mean over channels is subtracted first, as LayerNorm does.
    """

    gain: Tensor
    centers: bool

    def apply(self, directions: Tensor) -> Tensor:
        """Directions as the output head sees them: float32 [..., hidden], on the CPU."""
        found = directions.to("cpu", torch.float32)
        if self.centers:
            found = found - found.mean(dim=-1, keepdim=True)
        return found * self.gain


def token_logits(reader: PromptReader, directions: Tensor) -> Tensor:
    """What directions add to the logit of each token, up to a factor common to all tokens.

    Args:
        directions: [n, hidden], such as a run's directions without row 0.

    Returns:
        float32 [n, tokens], on the CPU. Rows of the head that stand for no token of the tokenizer
        are left out.

    Raises:
        ValueError: The directions have another width than the model.
        UnsupportedModelError: As `measured_readout`.
    """
    if directions.dim() != 2 or directions.shape[-1] != reader.hidden_size:
        raise ValueError(
            f"directions of shape {tuple(directions.shape)} do not fit a model of width "
            f"{reader.hidden_size}"
        )
    seen = measured_readout(reader).apply(directions)
    return _unembedded(_head(reader), seen)[:, : len(reader.tokenizer)]


def measured_readout(reader: PromptReader) -> Readout:
    """Measure what lies between the last layer and the output head.

    Raises:
        UnsupportedModelError: The model has no output head, its layers carry several streams, or
            what lies between is more than a norm with a gain per channel.
    """
    signs = _signs(reader.hidden_size)
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(reader.hidden_size, generator=generator)
    other = functional.normalize(other - other.mean(), dim=0) * reader.hidden_size**0.5
    probes = torch.cat([signs, (signs[0] + 1.0).unsqueeze(0), other.unsqueeze(0)])
    through = _between(reader, torch.cat([probes, -probes]))
    odd = (through[: len(probes)] - through[len(probes) :]) / 2  # without what is added to all
    parts = odd[: len(signs)] / signs.where(signs != 0, 1.0)
    gain = torch.where(signs[0] != 0, parts[0], parts[-1])
    readout = Readout(gain, bool(_differ(odd[-2], odd[0]) <= TOLERANCE))
    if not gain.any() or _differ(odd[-1], gain * other) > TOLERANCE:
        raise UnsupportedModelError(
            "Between the last layer and the output head lies more than a norm with a gain per "
            "channel, so that a direction cannot be read as tokens."
        )
    return readout


def _signs(width: int) -> Tensor:
    """Vectors of 1 and -1 with mean 0 and mean square 1, which norms leave as they are.

    Returns:
        float32 [1, width]; for an odd width [2, width], each with a zero where the other has none.
    """
    signs = torch.ones(width)
    signs[1::2] = -1.0
    if width % 2 == 0:
        return signs.unsqueeze(0)
    signs *= (width / (width - 1)) ** 0.5
    first, last = signs.clone(), signs.clone()
    first[-1], last[0] = 0.0, 0.0
    last[1:] = first[:-1]
    return torch.stack([first, last])


def _differ(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def _head(reader: PromptReader) -> nn.Module:
    head = reader.model.get_output_embeddings()
    if head is None:
        raise UnsupportedModelError("The model has no output head that could be read.")
    assert isinstance(head, nn.Module)
    return head


@torch.inference_mode()
def _between(reader: PromptReader, vectors: Tensor) -> Tensor:
    """What the output head gets if the last layer's output is these vectors, one per position.

    Returns:
        float32 [n, hidden], on the CPU.
    """
    layer, seen = reader.get_layers()[-1], []
    if carries_several(layer):
        raise UnsupportedModelError(
            f"Layers of type {type(layer).__name__} carry several residual streams, so that a "
            "direction cannot be read as tokens."
        )

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = first_tensor(output)
        given = vectors.to(hidden.device, hidden.dtype).reshape(hidden.shape)
        return given if isinstance(output, Tensor) else type(output)((given, *output[1:]))

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])

    head = _head(reader)
    ids = torch.full((1, len(vectors)), reader.tokenizer.eos_token_id or 0, device=reader.device)
    with ExitStack() as stack:
        stack.callback(layer.register_forward_hook(replace).remove)
        stack.callback(head.register_forward_pre_hook(note).remove)
        arguments = forward_arguments(reader.model, torch.ones_like(ids), len(vectors))
        reader.model(input_ids=ids, use_cache=False, **arguments)
    if len(seen) != 1 or seen[0].shape != (1, *vectors.shape):
        raise UnsupportedModelError(
            "The output head does not read a vector of the residual stream's width at every "
            "position, so that a direction cannot be read as tokens."
        )
    return seen[0][0].to("cpu", torch.float32)


@torch.inference_mode()
def _unembedded(head: nn.Module, vectors: Tensor) -> Tensor:
    """The head's output without its bias, float32 [n, vocabulary], on the CPU."""
    weight = getattr(head, "weight", None)
    if (
        isinstance(head, nn.Linear)
        and isinstance(weight, Tensor)
        and weight.is_floating_point()
        and weight.dim() == 2
        and weight.device.type != "meta"
    ):
        given = vectors.to(weight.device)
        pieces = [weight[first : first + ROWS] for first in range(0, len(weight), ROWS)]
        parts = [(given @ rows.to(torch.float32).T).cpu() for rows in pieces]
        return torch.cat(parts, dim=-1)
    like = next(head.parameters()) if weight is None else weight
    dtype = like.dtype if like.is_floating_point() else torch.float32
    given = vectors.to(like.device if like.device.type != "meta" else "cpu", dtype)
    found: Tensor = head(given) - head(torch.zeros_like(given))
    return found.to("cpu", torch.float32)
