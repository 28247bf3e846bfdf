"""Experts that are edited one by one while running.

A block of experts puts out the routed sum. Under `none` its edit is one projection of that sum; the
norm-preserving variants have other row norms for every expert, so their outputs are edited before
they are weighted and summed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from heretic.architectures import Writer
from heretic.edits import OutputEdit
from heretic.errors import UnsupportedModelError


def experts_arguments(
    module: nn.Module,
    name: str,
    hidden_states: Tensor,
    top_k_index: Tensor | None = None,
    top_k_weights: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of a block of experts, as transformers names them.

    Raises:
        UnsupportedModelError: It takes more, or its experts cannot be run one by one.
    """
    gated = hasattr(module, "gate_up_proj") and hasattr(module, "_apply_gate")
    known = gated or (hasattr(module, "up_proj") and hasattr(module, "act_fn"))
    known = known and top_k_index is not None and top_k_weights is not None
    if others or not known or getattr(module, "has_post_expert_norm", False):
        raise UnsupportedModelError(
            f"The experts at {name} ({type(module).__name__}) cannot be edited one by one.",
            remedy="Set row_normalization to none, for which their sum is edited.",
        )
    assert top_k_index is not None
    assert top_k_weights is not None
    return hidden_states, top_k_index, top_k_weights


def puts_out_each(module: nn.Module) -> bool:
    """Whether a block puts out all tokens for each expert, one expert after the other.

    [experts * tokens, hidden], to be summed later: the older kind (Llama 4).
    """
    return not hasattr(module, "_apply_gate") and not hasattr(module, "up_proj")


def apply_to_each(
    site: Sequence[Writer], output: Tensor, edit_of: Callable[[Writer], OutputEdit | None]
) -> Tensor:
    """Edit what such a block puts out."""
    parts = output.reshape(len(site), -1, output.shape[-1])
    edits = [edit_of(writer) for writer in site]
    edited = [
        part if edit is None else apply_to_rows(edit, part)
        for edit, part in zip(edits, parts, strict=True)
    ]
    return torch.stack(edited).reshape(output.shape)


def apply_to_rows(edit: OutputEdit, output: Tensor) -> Tensor:
    """Edit [tokens, hidden], row after row."""
    if edit.read.dim() == 2:
        return edit.apply(output)
    return edit.apply(output.reshape(len(edit.read), -1, output.shape[-1])).reshape(output.shape)


def edited_experts(
    site: Sequence[Writer],
    hidden: Tensor,
    index: Tensor,
    weights: Tensor,
    edit_of: Callable[[Writer], OutputEdit | None],
) -> Tensor:
    """The routed sum of edited experts (`transformers.integrations.moe`, without its kernels).

    Args:
        site: All experts of the block.
        hidden: [tokens, hidden], row after row.
        index: Experts of each token, int64 [tokens, k].
        weights: Of those experts, [tokens, k].
        edit_of: The edit of an expert: of all rows, or stacked ones, one for each row.

    Returns:
        [tokens, hidden], in the dtype of `hidden`.
    """
    total = torch.zeros_like(hidden, dtype=torch.promote_types(hidden.dtype, torch.float32))
    for writer in site:
        tokens, place = index.eq(writer.expert or 0).nonzero(as_tuple=True)
        if not len(tokens):
            continue
        weight = writer.stored()
        out = _inner(writer, hidden[tokens]) @ weight.mT
        edit = edit_of(writer)
        if edit is not None and edit.read.dim() == 2:
            out = edit.apply(out)
        elif edit is not None:
            row = tokens // (len(hidden) // len(edit.read))
            out = edit.rows(row).apply(out.unsqueeze(1)).squeeze(1)
        bias = writer.bias()
        if bias is not None:
            out = out + bias
        total = total.index_add(0, tokens, out.to(total) * weights[tokens, place, None].to(total))
    return total.to(hidden.dtype)


def _inner(writer: Writer, hidden: Tensor) -> Tensor:
    """What an expert's down projection is given."""
    module, expert = cast("Any", writer.module), writer.expert
    gated = hasattr(module, "gate_up_proj")
    name = "gate_up_proj" if gated else "up_proj"
    weight, bias = getattr(module, name)[expert], getattr(module, f"{name}_bias", None)
    up = hidden @ (weight if writer.transposed else weight.mT)
    if bias is not None:
        up = up + bias[expert]
    inner: Tensor = module._apply_gate(up) if gated else module.act_fn(up)  # noqa: SLF001
    return inner
