"""Stacked edits in memory that stays in place, so that a captured decoding step serves all plans.

A captured CUDA graph reads fixed addresses. New plans are therefore copied over the old ones. The
memory only grows: with the number of plans, with their rank, and with the writers that any plan has
edited. What the current plans leave out holds an edit that changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from heretic.method.edits import OutputEdit


class EditTable:
    """Stacked edits by writer name, [plans, ...], of one model.

    Attributes:
        version: Rises whenever the memory is replaced. A step that was captured before reads memory
            that is no longer filled.
    """

    def __init__(self) -> None:
        self.version = 0
        self._held: dict[str, OutputEdit] = {}

    def put(self, edits: Mapping[str, OutputEdit]) -> Mapping[str, OutputEdit]:
        """Hold stacked edits in place of the earlier ones.

        Returns:
            The edits where they are held now. The first dimension may be longer than that of
            `edits`, and there may be more writers; these edits change nothing.
        """
        if not all(name in self._held and _fits(x, self._held[name]) for name, x in edits.items()):
            self.version += 1
            known = [*edits.values(), *self._held.values()]
            plans, rank = (max(x.read.shape[axis] for x in known) for axis in (0, 1))
            for name in edits.keys() | self._held.keys():
                both = [x[name] for x in (edits, self._held) if name in x]
                self._held[name] = _room(both, plans, rank)
        for name, held in self._held.items():
            _fill(held, edits.get(name))
        return self._held


def _fits(edit: OutputEdit, held: OutputEdit) -> bool:
    own = held.moves_bias
    return (
        all(size <= most for size, most in zip(edit.read.shape, held.read.shape, strict=True))
        and (edit.scale is None or held.scale is not None)
        and (isinstance(own, Tensor) or own is edit.moves_bias)
    )


def _room(edits: Iterable[OutputEdit], plans: int, rank: int) -> OutputEdit:
    """Memory for any of these edits of one writer, with so many plans of such a rank."""
    first, *others = edits
    kinds = [first.moves_bias, *(edit.moves_bias for edit in others)]
    alike = isinstance(kinds[0], bool) and all(kind is kinds[0] for kind in kinds)
    scaled = any(edit.scale is not None for edit in (first, *others))
    new, width = first.read.new_empty, first.read.shape[-1]
    return OutputEdit(
        write=new(plans, rank, width),
        read=new(plans, rank, width),
        scale=new(plans, width) if scaled else None,
        row_norms=new(plans, width),
        moves_bias=kinds[0] if alike else new(plans, dtype=torch.bool),
    )


def _fill(held: OutputEdit, edit: OutputEdit | None) -> None:
    """Write an edit into its room; the rest changes nothing."""
    for vectors in (held.write, held.read):
        vectors.zero_()
    for factors in (held.scale, held.row_norms):
        if factors is not None:
            factors.fill_(1)
    if isinstance(held.moves_bias, Tensor):
        held.moves_bias.fill_(False)
    if edit is None:
        return
    plans, rank = edit.read.shape[:2]
    held.write[:plans, :rank] = edit.write
    held.read[:plans, :rank] = edit.read
    held.row_norms[:plans] = edit.row_norms
    if held.scale is not None and edit.scale is not None:
        held.scale[:plans] = edit.scale
    if isinstance(held.moves_bias, Tensor):
        held.moves_bias[:plans] = edit.moves_bias
