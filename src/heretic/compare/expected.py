"""The tensors that a plan edits, as the base's files name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heretic.architectures.resolver import Writer, find_writers
from heretic.compare.side import Side
from heretic.errors import UnsupportedModelError
from heretic.export.safetensors.sources import find_sources
from heretic.model import loading
from heretic.model.source import ModelSource
from heretic.records.plan import Plan

if TYPE_CHECKING:
    from torch import nn

NOTICEABLE = 0.05
"""Ablation weight from which an edit cannot be lost in the rounding of a file."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A tensor that a plan edits.

    Attributes:
        component, layer: Where its writer belongs.
        transposed: Whether it is stored as [d_in, d_out].
        stacked: Number of experts whose rows stand one below the other in one matrix; 0 otherwise.
        is_bias: Whether it holds biases of experts.
        surely: Whether the edit must show: the whole model has one direction, and the plan's weight
            is above `NOTICEABLE`.
    """

    component: str
    layer: int
    transposed: bool = False
    stacked: int = 0
    is_bias: bool = False
    surely: bool = False


def expected_tensors(
    source: ModelSource,
    base: Side,
    plan: Plan,
    *,
    writers: Sequence[Writer] | None = None,
    residual_writers: Sequence[str] = (),
) -> dict[str, Expected]:
    """The tensors of the base's files that a plan may edit, by name.

    Args:
        source: The base, for its configuration.
        writers: The model's residual writers; None for those that the configuration tells.
        residual_writers: The setting of that name.

    Raises:
        ModelError: The configuration cannot be read, or its writers are not known.
        ExportError: A writer's tensor is not in the base's files, or is quantised there.
    """
    model = loading.skeleton(source)
    known = find_writers(model, residual_writers) if writers is None else writers
    absent = {name for name, _ in plan.kernels} - {writer.component for writer in known}
    if absent:
        raise UnsupportedModelError(
            f"the writers of {', '.join(sorted(absent))} are found by running the model only"
        )
    # The first expert of a block stands for all of them, which share one parameter.
    edited = [
        writer
        for writer in known
        if not writer.expert and any(plan.ablation_weights(writer.component, writer.layer))
    ]
    biases = {writer.name: _bias(model, writer, plan) for writer in edited}
    names = [*(writer.parameter_name for writer in edited), *filter(None, biases.values())]
    sources = find_sources(model, base.checkpoint, names)
    found: dict[str, Expected] = {}
    for writer in edited:
        bias = biases[writer.name]
        for part in sources[bias] if bias else ():
            found[part.key] = Expected(writer.component, writer.layer, is_bias=True)
        for part in sources[writer.parameter_name]:
            found[part.key] = Expected(
                writer.component,
                writer.layer,
                transposed=writer.transposed != part.transposed,
                stacked=writer.experts if writer.stacked_by_rows else 0,
                surely=_is_sure(writer, plan),
            )
    return found


def _bias(model: nn.Module, writer: Writer, plan: Plan) -> str | None:
    """The name of experts' biases that are edited with their weights; None if there are none."""
    name = f"{writer.parameter_name}_bias"
    edited = writer.edited_in_sum(plan.row_normalization)
    return name if edited and name in model.state_dict() else None


def _is_sure(writer: Writer, plan: Plan) -> bool:
    weights = plan.ablation_weights(writer.component, writer.layer)
    shared = plan.direction_scope == "global" and not plan.fits
    return shared and all(abs(weight) >= NOTICEABLE for weight in weights)
