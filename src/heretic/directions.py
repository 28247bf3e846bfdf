"""Residuals to directions: pure tensor functions.

Method: difference of means, Arditi et al. 2024 (arXiv 2406.11717), section 2.3; the orthogonalised
("projected") variant after Jim Lai (2025), "Projected Abliteration".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from heretic.records import DirectionScope

RELATIVE_TOLERANCE = 1e-4
"""A difference of centres smaller than this, relative to the centres, is rounding noise."""


def winsorize(residuals: Tensor, quantile: float) -> Tensor:
    """Clamp each residual symmetrically at a quantile of its absolute components.

    Args:
        residuals: [..., hidden], any floating dtype.
        quantile: In (0, 1]; 1.0 returns the residuals unchanged.
    """
    if quantile >= 1.0:
        return residuals
    magnitude = residuals.abs().to(torch.float32)
    limit = torch.quantile(magnitude, quantile, dim=-1, keepdim=True).to(residuals.dtype)
    return torch.minimum(torch.maximum(residuals, -limit), limit)


class RunningMean:
    """Mean over batches of residuals, accumulated in float64 so that order does not matter."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0

    def add(self, residuals: Tensor) -> None:
        """Take in a batch [prompts, layers + 1, hidden]."""
        batch = residuals.to("cpu", torch.float64).sum(dim=0)
        self._total = batch if self._total is None else self._total + batch
        self._count += residuals.shape[0]

    def result(self) -> Tensor:
        """The mean so far, float64 [layers + 1, hidden].

        Raises:
            ValueError: Nothing was added.
        """
        if self._total is None or self._count == 0:
            raise ValueError("the mean of no residuals is not defined")
        return self._total / self._count


def geometric_median(residuals: Tensor, *, steps: int = 200, tolerance: float = 1e-9) -> Tensor:
    """Geometric median over prompts, by Weiszfeld's algorithm (Weiszfeld 1937) in float64.

    Args:
        residuals: [prompts, layers + 1, hidden].

    Returns:
        float64 [layers + 1, hidden].
    """
    points = residuals.to(torch.float64)
    median = points.mean(dim=0)
    for _ in range(steps):
        distance = (points - median).norm(dim=-1, keepdim=True).clamp_min(1e-12)
        weights = 1.0 / distance
        updated = (points * weights).sum(dim=0) / weights.sum(dim=0)
        change = (updated - median).norm() / median.norm().clamp_min(1e-12)
        median = updated
        if change < tolerance:
            break
    return median


def difference_directions(
    good_centers: Tensor, bad_centers: Tensor, *, orthogonalize: bool
) -> Tensor:
    """Per layer unit(bad - good), optionally without its component along unit(good).

    Args:
        good_centers: Means or medians of the good residuals, [layers + 1, hidden].
        bad_centers: The same of the bad residuals.
        orthogonalize: Project the good centre's direction out and renormalise.

    Returns:
        float32 [layers + 1, hidden]. Row 0 (embeddings) is zero, and so is every row whose
        difference is below tolerance: noise is never normalised to a direction.
    """
    good = good_centers.to(torch.float64)
    bad = bad_centers.to(torch.float64)
    difference = bad - good
    scale = torch.maximum(good.norm(dim=-1), bad.norm(dim=-1)).unsqueeze(-1)
    tolerance = RELATIVE_TOLERANCE * scale
    significant = difference.norm(dim=-1, keepdim=True) > tolerance
    if orthogonalize:
        axis = functional.normalize(good, dim=-1)
        difference = difference - (difference * axis).sum(dim=-1, keepdim=True) * axis
        significant &= difference.norm(dim=-1, keepdim=True) > tolerance
    directions = torch.where(significant, functional.normalize(difference, dim=-1), 0.0)
    directions[0] = 0.0
    return directions.to(torch.float32)


def layer_direction(
    directions: Tensor, layer: int, scope: DirectionScope, index: float | None
) -> Tensor:
    """The unit direction that a layer is edited with (SPEC section 2), or zeros if it has none.

    Args:
        directions: [layers + 1, hidden]; row l + 1 belongs to layer l.
        layer: 0-based.
        scope: `per layer`, `global` or `mean`.
        index: Fractional layer index, for `global`: i interpolates the directions of layers
            floor(i) and floor(i) + 1, clamped at the ends.

    Returns:
        [hidden], the dtype of `directions`.
    """
    layers = directions[1:]
    if scope == "per layer":
        return layers[layer]
    if scope == "mean":
        return functional.normalize(layers.mean(dim=0), dim=-1)
    if index is None:
        raise ValueError("the scope 'global' needs a direction index")
    position = min(max(index, 0.0), float(len(layers) - 1))
    lower = int(position)
    upper = min(lower + 1, len(layers) - 1)
    mixed = torch.lerp(layers[lower], layers[upper], position - lower)
    return functional.normalize(mixed, dim=-1)
