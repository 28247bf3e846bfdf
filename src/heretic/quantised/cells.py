"""Matrices in cells, each of which has one scale: the whole, rows, groups in a row, or blocks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Cell = tuple[int, int]
"""Rows and columns of a cell; those at the end may be smaller."""


def split(matrix: Tensor, cell: Cell) -> Tensor:
    """Cells of [..., rows, columns], zeros added: [..., r, cell rows, c, cell columns]."""
    rows, columns = matrix.shape[-2:]
    pad = (0, -columns % cell[1], 0, -rows % cell[0])
    padded = functional.pad(matrix, pad) if any(pad) else matrix
    *stacked, rows, columns = padded.shape
    return padded.reshape(*stacked, rows // cell[0], cell[0], columns // cell[1], cell[1])


def spread(values: Tensor, cell: Cell, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """One value of each cell, [..., r, c], at each number of it: [..., rows, columns]."""
    rows, columns = shape[-2:]
    wide = values.repeat_interleave(cell[1], -1)[..., :columns]
    return wide.repeat_interleave(cell[0], -2)[..., :rows, :]


def errors(matrix: Tensor, other: Tensor, cell: Cell) -> Tensor:
    """Squared differences, summed in each cell, [..., r, c]; infinite where one is not finite."""
    found = split((matrix - other).square(), cell).sum(dim=(-3, -1))
    return found.nan_to_num(nan=float("inf"))


def better(weight: Tensor, with_made: Tensor, with_kept: Tensor, cell: Cell) -> Tensor:
    """For each cell, whether new scales round a weight less than those it had.

    A cell that is not edited lies on the levels of its old scale, which therefore stays, and with
    it every byte.

    Args:
        weight: float32 [..., rows, columns].
        with_made, with_kept: The weight as it is read back with new and with old scales.

    Returns:
        bool [..., r, c].
    """
    return errors(weight, with_made, cell) < errors(weight, with_kept, cell)
