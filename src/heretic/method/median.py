"""The geometric median, for numpy arrays and torch tensors alike.

The function uses only operations that both have, so that the reports need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Points = TypeVar("Points", "NDArray[np.float64]", "Tensor")

SMALLEST = 1e-12
"""Distances below this count as this, so that nothing is divided by zero."""


def weiszfeld(points: Points, *, steps: int = 200, tolerance: float = 1e-9) -> Points:
    """Geometric median over the first axis, by Weiszfeld's algorithm (Weiszfeld 1937).

    Args:
        points: float64 [points, ..., hidden]; each index of the axes between has its own median.
        steps: Largest number of steps.
        tolerance: The steps end when all medians together move by less than this part of their
            length.

    Returns:
        float64 [..., hidden].
    """
    median: Points = points.mean(0)
    for _ in range(steps):
        squares = points - median
        squares *= squares  # in place: the residuals of many prompts are large
        weights = (1.0 / (squares.sum(-1) ** 0.5).clip(min=SMALLEST))[..., None]
        updated = (points * weights).sum(0) / weights.sum(0)
        change = float(((updated - median) ** 2).sum() ** 0.5)
        length = max(float((median**2).sum() ** 0.5), SMALLEST)
        median = updated
        if change < tolerance * length:
            break
    return median
