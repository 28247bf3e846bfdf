"""How decoding is cut into blocks of steps, and the shapes of steps."""

from __future__ import annotations

from dataclasses import dataclass

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
        mixes: Whether prompts of several plans share a forward pass.
    """

    steps: int
    rows: int = 1
    columns: int = 1
    overlaps: bool = False
    mixes: bool = False

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
    "cuda": Schedule(steps=8, rows=8, columns=128, overlaps=True, mixes=True),
}
ELSEWHERE = Schedule(steps=4, columns=64, mixes=True)
"""By the kind of device. On a CPU each spare row and column is work, and a check costs nothing; on
an accelerator a shape that was met before is cheaper than one that fits exactly, and a pass over
few prompts takes as long as one over many."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The slots 0..rows and the columns begin..end that a step reads."""

    rows: int
    begin: int
    end: int
