"""Edits experts one by one during the forward pass.

A block of experts returns the routed sum. With row normalization `none`, the edit is one projection
of that sum. The other variants depend on each expert's row norms, so each expert's output is edited
before it is weighted and summed. How to obtain these outputs depends on what the block's forward
takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from heretic.architectures.resolver import Writer
from heretic.architectures.table import EXPERT_GATES, EXPERT_ROUTING
from heretic.errors import UnsupportedModelError
from heretic.method.edits import OutputEdit
from heretic.model.hooks import replaced
from heretic.records.plan import RowNormalization

EditOf = Callable[[Writer], OutputEdit | None]
"""Returns a writer's edit: one edit for all rows, stacked edits with one for each row of the batch,
or None for no edit."""

Kind = Literal["routed", "gated", "listed", "sorted"]
"""What the forward of a block of experts takes besides hidden states. `routed`: each token's chosen
experts and their weights. `gated`: a factor for every expert. `listed`: nothing, the block returns
the outputs of all experts (Llama 4). `sorted`: tokens sorted by expert (JetMoe)."""


def check_variant(writers: Sequence[Writer], row_normalization: RowNormalization) -> None:
    """Check, before any costly work, that a variant can edit all writers.

    Raises:
        ModelError: A weight cannot be read.
        UnsupportedModelError: Experts cannot be edited one by one.
    """
    if row_normalization == "none":
        return
    for writer in writers:
        writer.check_readable()
        if writer.expert is not None:
            kind_of(writer)


def kind_of(writer: Writer) -> Kind:
    """The kind of block that holds an expert.

    Raises:
        UnsupportedModelError: The block's kind is unknown.
    """
    module = writer.module
    kind = "sorted" if writer.router is not None else _kind(type(module))
    if kind is None or getattr(module, "has_post_expert_norm", False):
        raise UnsupportedModelError(
            f"The experts at {writer.name} ({type(module).__name__}) cannot be edited one by one.",
            remedy="Set row_normalization to none, which edits their sum.",
        )
    return kind


@cache  # called in every forward pass of a block
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


def _kind(block: type[nn.Module]) -> Kind | None:
    _, *others = [*_signature(block.forward).parameters][1:]
    if tuple(others) in EXPERT_ROUTING:
        return "routed"
    if others == [EXPERT_GATES]:
        return "gated"
    return None if others else "listed"


@contextmanager
def edited(site: Sequence[Writer], edit_of: EditOf) -> Iterator[None]:
    """Edit a block of experts while the context lasts.

    Args:
        site: All experts of the block.
        edit_of: Called in every forward pass; see `EditOf`.
    """
    module, router = site[0].module, site[0].router
    forward = module.forward
    routing: list[Any] = []  # the router's latest output

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        routing[:] = [output]

    def run(*args: Any, **kwargs: Any) -> Tensor:
        if edit_of(site[0]) is None:
            output: Tensor = forward(*args, **kwargs)
            return output
        return _edited(site, forward, edit_of, routing, args, kwargs)

    with ExitStack() as stack:
        if router is not None:
            stack.callback(router.register_forward_hook(keep).remove)
        stack.enter_context(replaced(module, run))
        yield


def _edited(
    site: Sequence[Writer],
    forward: Callable[..., Tensor],
    edit_of: EditOf,
    routing: Sequence[Any],
    args: Any,
    kwargs: Any,
) -> Tensor:
    first = edit_of(site[0])
    assert first is not None
    if site[0].router is not None:
        return _sorted(site, forward(*args, **kwargs), edit_of, routing[0])
    block = type(site[0].module)
    # Rows that are edited in the sum can be among others that are not: then all go by expert.
    in_sum = first.moves_bias is True and _kind(block) != "listed"
    if in_sum and not _hands_on(site):
        return apply_to_rows(first, forward(*args, **kwargs))
    kind = kind_of(site[0])
    if kind == "listed":
        return _listed(site, forward(*args, **kwargs), edit_of)
    given = _signature(block.forward).bind(None, *args, **kwargs).args[1:]
    if in_sum:
        return _summed(site, forward, first, *given)
    return (_gated if kind == "gated" else _routed)(site, forward, edit_of, *given)


def _summed(
    site: Sequence[Writer],
    forward: Callable[..., Tensor],
    edit: OutputEdit,
    hidden: Tensor,
    index: Tensor,
    weights: Tensor,
) -> Tensor:
    """The routed sum; the edit that all experts share is applied only to what experts write."""
    written = forward(hidden, index, weights.masked_fill(index >= len(site), 0))
    return apply_to_rows(edit, written) + _handed_on(site, forward, hidden, index, weights)


def _hands_on(site: Sequence[Writer]) -> bool:
    """Whether some experts that can be chosen only return their input (LongCat)."""
    own = site[0].module.parameters(recurse=False)
    return any(parameter.ndim == 3 and len(parameter) > len(site) for parameter in own)


def _handed_on(
    site: Sequence[Writer],
    forward: Callable[..., Tensor],
    hidden: Tensor,
    index: Tensor,
    weights: Tensor,
) -> Tensor:
    """The part of the routed sum that comes from experts that only return their input."""
    weights = weights.masked_fill(index < len(site), 0)
    return forward(hidden, index.clamp_min(len(site)), weights)


def _listed(site: Sequence[Writer], output: Tensor, edit_of: EditOf) -> Tensor:
    """Edit [experts * tokens, hidden]: all tokens of the first expert, then of the next."""
    parts = output.reshape(len(site), -1, output.shape[-1])
    edits = [edit_of(writer) for writer in site]
    edited = [
        part if edit is None else apply_to_rows(edit, part)
        for edit, part in zip(edits, parts, strict=True)
    ]
    return torch.stack(edited).reshape(output.shape)


def _sorted(site: Sequence[Writer], output: Tensor, edit_of: EditOf, routing: Any) -> Tensor:
    """Edit [tokens * k, hidden], sorted by expert.

    Args:
        routing: Output of a router in `table.ROUTERS`. Item 1 has the token of each row, item 3
            the number of rows of each expert; the last item has a row for each token.
    """
    token, counts, count = routing[1], routing[3], len(routing[-1])
    parts, tokens = torch.split(output, counts), torch.split(token, counts)
    edited = [
        _apply_to_tokens(edit_of(writer), part, own, count)
        for writer, part, own in zip(site, parts, tokens, strict=True)
    ]
    return torch.cat(edited)


def apply_to_rows(edit: OutputEdit, output: Tensor) -> Tensor:
    """Edit [tokens, hidden], where the tokens of one row follow those of another."""
    if edit.read.dim() == 2:
        return edit.apply(output)
    return edit.apply(output.reshape(len(edit.read), -1, output.shape[-1])).reshape(output.shape)


def _apply_with_bias(
    edit: OutputEdit, output: Tensor, bias: Tensor | None, tokens: Tensor, count: int
) -> Tensor:
    """Edit an expert's outputs [n, hidden], which lack the bias, and add it, edited where it is."""
    if bias is None:
        return _apply_to_tokens(edit, output, tokens, count)
    moves = torch.as_tensor(edit.moves_bias, device=output.device)
    if moves.dim():  # one for each row of the batch
        moves = moves[tokens // (count // len(moves))].unsqueeze(-1)
    edited = _apply_to_tokens(edit, output + moves * bias, tokens, count)
    return edited + ~moves * bias


def _apply_to_tokens(edit: OutputEdit | None, output: Tensor, tokens: Tensor, count: int) -> Tensor:
    """Edit outputs [n, hidden] of the tokens with these indices, out of `count` in all rows."""
    if edit is None or not len(output):
        return output
    if edit.read.dim() == 2:
        return edit.apply(output)
    rows = tokens // (count // len(edit.read))
    return edit.rows(rows).apply(output.unsqueeze(1)).squeeze(1)


def _gated(
    site: Sequence[Writer],
    forward: Callable[..., Tensor],
    edit_of: EditOf,
    hidden_states: Tensor,
    gates: Tensor,
) -> Tensor:
    """The sum of edited experts; each output is obtained with all other gates at 0.

    Args:
        hidden_states: [..., hidden].
        gates: [..., experts].
    """
    total = torch.zeros_like(
        hidden_states, dtype=torch.promote_types(hidden_states.dtype, torch.float32)
    )
    for number, writer in enumerate(site):
        alone = torch.zeros_like(gates)
        alone[..., number] = gates[..., number]
        out, edit = forward(hidden_states, alone), edit_of(writer)
        total += out if edit is None else apply_to_rows(edit, out)
    return total.to(hidden_states.dtype)


def _routed(
    site: Sequence[Writer],
    forward: Callable[..., Tensor],
    edit_of: EditOf,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """The routed sum of edited experts (as `transformers.integrations.moe`, without its kernels).

    Args:
        forward: The block's own forward.
        hidden_states: [..., hidden].
        top_k_index: Chosen experts of each token, int64 [tokens, k].
        top_k_weights: Weights of these experts, [tokens, k].

    Returns:
        The sum, with the shape and dtype of `hidden_states`.
    """
    hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
    total = torch.zeros_like(hidden, dtype=torch.promote_types(hidden.dtype, torch.float32))
    for writer in site:
        tokens, place = top_k_index.eq(writer.expert or 0).nonzero(as_tuple=True)
        if not len(tokens):
            continue
        out, edit, bias = _alone(writer, forward, hidden[tokens]), edit_of(writer), writer.bias()
        if edit is not None:
            out = _apply_with_bias(edit, out, bias, tokens, len(hidden))
        elif bias is not None:
            out = out + bias
        weights = top_k_weights[tokens, place, None].to(total)
        total = total.index_add(0, tokens, out.to(total) * weights)
    if _hands_on(site):
        total = total + _handed_on(site, forward, hidden, top_k_index, top_k_weights).to(total)
    return total.to(hidden.dtype).reshape(hidden_states.shape)


def _alone(writer: Writer, forward: Callable[..., Tensor], hidden: Tensor) -> Tensor:
    """One expert's output for [tokens, hidden], before routing weights and without its bias."""
    module = cast("Any", writer.module)
    gated = hasattr(module, "gate_up_proj") and hasattr(module, "_apply_gate")
    packed = writer.whole().element_size() == 1  # multiplied by the block's own kernels only
    if not packed and (gated or (hasattr(module, "up_proj") and hasattr(module, "act_fn"))):
        return _inner(writer, hidden) @ writer.stored().mT
    # Run the block as if every token had chosen this expert alone. LongCat's block does not run
    # with one choice, so a second one gets weight 0.
    chosen = torch.full((len(hidden), 2), writer.expert or 0, device=hidden.device)
    weights = torch.zeros_like(chosen, dtype=hidden.dtype)
    weights[:, 0] = 1
    out = forward(hidden, chosen, weights)
    out, bias = out.reshape(hidden.shape), writer.bias()
    return out if bias is None else out - bias


def _inner(writer: Writer, hidden: Tensor) -> Tensor:
    """The input of an expert's down projection, [tokens, d_in]."""
    module, expert = cast("Any", writer.module), writer.expert
    gated = hasattr(module, "gate_up_proj")
    name = "gate_up_proj" if gated else "up_proj"
    weight, bias = getattr(module, name)[expert], getattr(module, f"{name}_bias", None)
    up = hidden @ (weight if writer.transposed else weight.mT)
    if bias is not None:
        up = up + bias[expert]
    inner: Tensor = module._apply_gate(up) if gated else module.act_fn(up)  # noqa: SLF001
    return inner
