"""The decoding step: the next token of every row, as a function of buffers of fixed shape.

All that differs from one step to the next lies on the device: tokens, positions, the column that
is written, how many tokens each row may still make, and which plan edits it. A step reads and
writes these buffers in place. With the same `Shape` it is the same work on the same memory, so it
can be captured once and replayed (`heretic.engine.graphs`), and nothing waits for the device.

Rows that have ended go on without effect: they write into their own slot until they are removed.
The same holds for spare rows, which fill up a shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heretic.engine.shapes import Shape
from heretic.engine.slots import SlotCache
from heretic.model.choice import most_likely

if TYPE_CHECKING:
    from heretic.model.core import Model


class Rows:
    """What the device knows of the rows, by slot.

    Attributes:
        tokens: Each row's latest token, which the next step reads, int64 [slots].
        positions: The position of that token, int64 [slots].
        left: Tokens that the row may still make; 0 once it has ended, int64 [slots].
        plans: The plan that edits the row, int64 [slots].
        column: The column that the next step writes, int64 [1].
        made: Tokens by the column in which the one before them was written, int64 [slots, columns].
    """

    def __init__(self, slots: int, columns: int, end: Iterable[int], device: torch.device) -> None:
        self.tokens, self.positions, self.left, self.plans = torch.zeros(
            4, slots, dtype=torch.long, device=device
        )
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.made = torch.zeros(slots, columns, dtype=torch.long, device=device)
        self._columns = torch.arange(columns, device=device)
        self._end = torch.tensor(sorted(end), dtype=torch.long, device=device)

    def begin(
        self,
        first: int,
        tokens: Tensor,
        positions: Sequence[int],
        left: int,
        plans: Sequence[int],
    ) -> None:
        """Put rows into the slots from `first`.

        Args:
            tokens: Their first tokens, int64 [rows].
            positions: The positions of these tokens.
            left: Tokens that may follow.
            plans: The plan of each row.
        """
        rows = slice(first, first + len(tokens))
        self.tokens[rows] = tokens
        self.positions[rows] = torch.tensor(positions, device=self.positions.device)
        self.left[rows] = left * ~self._ended(self.tokens[rows])
        self.plans[rows] = torch.tensor(plans, device=self.plans.device)

    def rest(self, first: int, last: int) -> None:
        """Make the rows in these slots spare ones."""
        for numbers in (self.tokens, self.positions, self.left, self.plans):
            numbers[first:last] = 0

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows in the slots `sources` to the slots `targets`; the two do not overlap."""
        source, target = torch.tensor([list(sources), list(targets)], device=self.tokens.device)
        for numbers in (self.tokens, self.positions, self.left, self.plans):
            numbers[target] = numbers[source]

    def take(self, chosen: Tensor) -> None:
        """Add one token to each of the first rows, int64 [rows], and go on to the next column."""
        rows = len(chosen)
        going = self.left[:rows] > 0
        tokens = torch.where(going, chosen, self.tokens[:rows])
        self.made[:rows].index_copy_(1, self.column, tokens.unsqueeze(1))
        self.left[:rows].sub_(going.long()).mul_(~self._ended(tokens))
        self.positions[:rows].add_(going.long())
        self.tokens[:rows].copy_(tokens)
        self.column.add_(1)

    def at_column(self) -> Tensor:
        """Which column the next step writes, bool [columns]."""
        return self._columns == self.column

    def _ended(self, tokens: Tensor) -> Tensor:
        """Which tokens end a reply, bool [rows]."""
        return (tokens.unsqueeze(1) == self._end).any(dim=1)


def next_logits(model: Model, cache: SlotCache, rows: Rows, shape: Shape) -> Tensor:
    """Raw logits after each row's latest token, [rows, vocabulary], in the model's dtype.

    Keys and values of these tokens are written, and carried states go on by them.
    """
    count, begin, end = shape.rows, shape.begin, shape.end
    mask, positions = cache.mask[:count], rows.positions[:count].unsqueeze(1)
    # Spare rows, and rows that have ended, see at least their own column: no row of NaN.
    mask.logical_or_(rows.at_column())
    masks = cache.layout.masks(
        mask[:, None, begin:end], positions, None, lambda: cache.positions(0, count, begin, end)
    )
    return model.step(
        rows.tokens[:count].unsqueeze(1),
        positions,
        masks,
        cache.at(0, count, begin, end, rows.column),
    )[:, -1]


def step(model: Model, cache: SlotCache, rows: Rows, shape: Shape) -> None:
    """Make the next token of every row; all results stay in `rows` and `cache`."""
    rows.take(most_likely(next_logits(model, cache, rows, shape)))
