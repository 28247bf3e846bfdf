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
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heretic.engine.slots import SlotCache
from heretic.model.generation import most_likely

if TYPE_CHECKING:
    from heretic.model.core import Model


SPARE_COLUMNS = 16
"""Columns beyond the longest row, so that the cache need not be moved at every step."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How decoding is cut into blocks of steps of one shape.

    Attributes:
        steps: Steps between two checks of the replies, which may wait for the device.
        rows: Fewest rows of a shape; above it, powers of two. 1: exactly the live rows.
        columns: Columns of a shape are rounded to multiples of this. 1: exactly those in use.
        overlaps: Whether the next block begins before the replies are checked. Rows whose replies
            turn out to be done then make one block of tokens for nothing.
    """

    steps: int
    rows: int = 1
    columns: int = 1
    overlaps: bool = False

    @property
    def spare_columns(self) -> int:
        """Columns of a slot beyond the longest row: one may stay for two blocks after its end."""
        return SPARE_COLUMNS + 2 * self.steps

    def rounded_rows(self, rows: int, slots: int) -> int:
        """Rows of the shape for so many live rows."""
        if self.rows == 1:
            return rows
        return min(slots, max(self.rows, 1 << (rows - 1).bit_length()))

    def down(self, column: int) -> int:
        """The first column of the shape that has this one."""
        return column - column % self.columns

    def up(self, column: int, columns: int) -> int:
        """The end of the shape that ends at this column or later, of `columns` columns in all."""
        return min(columns, column + -column % self.columns)


SCHEDULES = {
    "cpu": Schedule(steps=1),
    "cuda": Schedule(steps=8, rows=8, columns=128, overlaps=True),
}
ELSEWHERE = Schedule(steps=4, columns=64)
"""By the kind of device. On a CPU each spare row and column is work, and a check costs nothing; on
an accelerator a shape that was met before is cheaper than one that fits exactly."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The slots 0..rows and the columns begin..end that a step reads."""

    rows: int
    begin: int
    end: int


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
        self, first: int, tokens: Tensor, positions: Sequence[int], left: int, plan: int
    ) -> None:
        """Put rows into the slots from `first`.

        Args:
            tokens: Their first tokens, int64 [rows].
            positions: The positions of these tokens.
            left: Tokens that may follow.
        """
        rows = slice(first, first + len(tokens))
        self.tokens[rows] = tokens
        self.positions[rows] = torch.tensor(positions, device=self.positions.device)
        self.left[rows] = left * ~self._ended(self.tokens[rows])
        self.plans[rows] = plan

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

    Keys and values of these tokens are written, so a second call gives the same.
    """
    count = shape.rows
    mask = cache.mask[:count]
    # Spare rows, and rows that have ended, see at least their own column: no row of NaN.
    mask.logical_or_(rows.at_column())
    return model.step(
        rows.tokens[:count].unsqueeze(1),
        rows.positions[:count].unsqueeze(1),
        mask[:, None, shape.begin : shape.end],
        cache.at(0, count, shape.begin, shape.end, rows.column),
    )[:, -1]


def step(model: Model, cache: SlotCache, rows: Rows, shape: Shape) -> None:
    """Make the next token of every row; all results stay in `rows` and `cache`."""
    rows.take(most_likely(next_logits(model, cache, rows, shape)))
