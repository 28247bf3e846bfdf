"""Vectors that keep the form of an edit and lose its meaning, as controls of what it carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from heretic.method.fits import Fit

Row = TypeVar("Row")


def mixed(first: Sequence[Row], second: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Two sets at random, each with half of the first rows and half of the second.

    Labels that are merely shuffled leave one set with more of the second rows by chance, and a
    difference of means then still holds some of what tells the rows apart.
    """
    generator = torch.Generator().manual_seed(seed)
    halves: tuple[list[Row], list[Row]] = ([], [])
    for rows in (first, second):
        order = torch.randperm(len(rows), generator=generator)
        shuffled = [rows[place] for place in order.tolist()]
        middle = len(rows) // 2
        halves[0].extend(shuffled[:middle])
        halves[1].extend(shuffled[middle:])
    return halves


def rotated(vectors: Tensor, seed: int) -> Tensor:
    """The vectors after one random rotation: their norms and all angles between them stay.

    Args:
        vectors: [..., hidden], any floating dtype.

    Returns:
        Same shape and dtype. The rotation is uniform (Stewart 1980), computed in float64.
    """
    rows = vectors.flatten(0, -2).to(torch.float64)
    basis, coordinates = torch.linalg.qr(rows.T)  # only the span of the vectors has to turn
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(basis.shape, generator=generator, dtype=torch.float64)
    turned, triangle = torch.linalg.qr(sample)
    turned = turned * triangle.diagonal().sign()  # without it, the rotation is not uniform
    found: Tensor = (turned @ coordinates).T.reshape(vectors.shape).to(vectors.dtype)
    return found


def rotated_fit(fit: Fit, seed: int) -> Fit:
    """A fit whose write and read vectors are rotated together, all by the same rotation."""
    turned = rotated(torch.stack([fit.write, fit.read]), seed)
    return replace(fit, write=turned[0].contiguous(), read=turned[1].contiguous())


def moved_fit(fit: Fit, seed: int) -> Fit:
    """A fit whose vectors stand in other layers: at random, and none in its own.

    Raises:
        ValueError: The model has one layer.
    """
    layers = fit.write.shape[2]
    if layers < 2:
        raise ValueError("vectors of one layer cannot be moved to another")
    generator = torch.Generator().manual_seed(seed)
    cycle = torch.randperm(layers, generator=generator)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)  # each layer gets the vectors of the one before it in the cycle
    return replace(fit, write=fit.write[:, :, order], read=fit.read[:, :, order])
