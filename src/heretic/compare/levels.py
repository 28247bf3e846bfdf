"""Whether the numbers of a matrix lie on the few levels of a quantisation."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK, ROWS = 64, 16
"""Numbers that usual 4-bit formats give one scale at least half of; rows that are looked at."""

MANY = 1024
"""Columns from which 256 levels in a row cannot be chance."""


def bits(matrix: Tensor) -> int | None:
    """4 or 8 if a matrix holds only so many levels as quantised weights do; None if it holds more.

    In 4-bit formats, blocks of 32 or 64 numbers have at most 16 or 32 levels; in 8-bit formats with
    one scale for a row, the row has at most 256. Other formats are not recognised.

    Args:
        matrix: [m, n].
    """
    rows = matrix[:ROWS].float()
    if rows.dim() < 2 or rows.shape[1] < BLOCK:
        return None
    whole = rows[:, : rows.shape[1] // BLOCK * BLOCK].reshape(-1, BLOCK)
    if all(len(torch.unique(block)) <= BLOCK // 2 for block in whole):
        return 4
    if rows.shape[1] >= MANY and all(len(torch.unique(row)) <= 256 for row in rows):
        return 8
    return None
