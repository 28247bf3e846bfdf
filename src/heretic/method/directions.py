"""Residuals to directions: pure tensor functions.

Method: difference of means, Arditi et al. 2024 (arXiv 2406.11717), section 2.3; the orthogonalised
("projected") variant after Jim Lai (2025), "Projected Abliteration"; directions that spare similar
prompts, Wang et al. 2024 (arXiv 2410.03415), section 3.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional

from heretic.method.median import weiszfeld
from heretic.records.plan import Plan

RELATIVE_TOLERANCE = 1e-4
"""A difference of centres smaller than this, relative to the centres, is rounding noise."""


def winsorize(residuals: Tensor, quantile: float) -> Tensor:
    """Clamp each residual symmetrically at a quantile of its absolute components.

    Args:
        residuals: [..., hidden], any floating dtype.
        quantile: In (0, 1]; 1.0 returns the residuals unchanged.

    Returns:
        Same shape and dtype.
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
        """Add a batch of residuals, [prompts, layers + 1, hidden], any floating dtype."""
        batch = residuals.to("cpu", torch.float64).sum(dim=0)
        self._total = batch if self._total is None else self._total + batch
        self._count += residuals.shape[0]

    def result(self) -> Tensor:
        """The mean so far, float64 [layers + 1, hidden].

        Raises:
            ValueError: Nothing was added.
        """
        if self._total is None or self._count == 0:
            raise ValueError("no residuals were added, so there is no mean")
        return self._total / self._count


def geometric_median(residuals: Tensor) -> Tensor:
    """Geometric median over prompts, computed in float64.

    Args:
        residuals: [prompts, layers + 1, hidden], any floating dtype.

    Returns:
        float64 [layers + 1, hidden].
    """
    return weiszfeld(residuals.to(torch.float64))


def difference_directions(
    good_centers: Tensor, bad_centers: Tensor, *, orthogonalize: bool
) -> Tensor:
    """Per layer unit(bad - good), optionally without its component along unit(good).

    Args:
        good_centers: Means or medians of the good residuals, [layers + 1, hidden].
        bad_centers: Means or medians of the bad residuals, same shape.
        orthogonalize: Project the good centre's direction out and renormalise.

    Returns:
        float32 [layers + 1, hidden]. Row 0 (embeddings) is zero, and so is every row whose
        difference is below `RELATIVE_TOLERANCE`: noise is never normalised to a direction.
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


def lengths_along(directions: Tensor, good_centers: Tensor, bad_centers: Tensor) -> Tensor:
    """How far bad lies from good along each direction: float64 [layers + 1].

    Along a direction that nothing was projected out of, it is the length of the difference.

    Args:
        directions: Unit or zero vectors, [layers + 1, hidden].
        good_centers, bad_centers: As in `difference_directions`.
    """
    difference = bad_centers.to(torch.float64) - good_centers.to(torch.float64)
    return (difference * directions.to(difference)).sum(dim=-1)


def sparing_directions(directions: Tensor, protected: Tensor) -> Tensor:
    """Two directions per layer: one that spares the protected prompts, and their own.

    The first is the layer's direction without its component along the protected direction; the
    second is the protected direction.

    Args:
        directions: Unit or zero vectors, [layers + 1, hidden].
        protected: Directions of the protected prompts, unit or zero, same shape.

    Returns:
        float32 [layers + 1, 2, hidden], orthonormal except for rows of zeros: a direction parallel
        to the protected one becomes zero.
    """
    pairs = torch.stack([protected, directions], dim=1).to(torch.float64)
    return torch.stack([orthonormal(pair) for pair in pairs]).flip(1).to(torch.float32)


def layer_basis(directions: Tensor, layer: int, plan: Plan) -> Tensor:
    """The orthonormal directions that a layer is edited along (docs/how-it-works.md).

    Args:
        directions: [layers + 1, hidden], or [layers + 1, k, hidden] with k orthonormal directions
            per layer, the most important first; row l + 1 belongs to layer l.
        layer: 0-based.
        plan: Gives the scope, the rank, and the index: i interpolates between the layers floor(i)
            and floor(i) + 1, and is clamped at the ends.

    Returns:
        [rank, hidden] in the dtype of `directions`; a row of zeros where there is no direction.

    Raises:
        ValueError: The rank is above k.
    """
    layers = directions[1:] if directions.dim() == 3 else directions[1:].unsqueeze(1)
    if plan.rank > layers.shape[1]:
        raise ValueError(
            f"a plan of rank {plan.rank} needs {plan.rank} directions per layer, "
            f"not {layers.shape[1]}"
        )
    layers = layers[:, : plan.rank]
    if plan.direction_scope == "per layer":
        return layers[layer]
    if plan.direction_scope == "mean":
        return orthonormal(layers.mean(dim=0))
    assert plan.direction_index is not None
    position = min(max(plan.direction_index, 0.0), float(len(layers) - 1))
    lower = int(position)
    upper = min(lower + 1, len(layers) - 1)
    return orthonormal(torch.lerp(layers[lower], layers[upper], position - lower))


def orthonormal(vectors: Tensor) -> Tensor:
    """Orthonormal rows [k, hidden] with the same span and order, by Gram-Schmidt.

    A row in the span of the rows before it becomes zero.
    """
    rows: list[Tensor] = []
    for vector in vectors:
        length = vector.norm()
        rest = vector
        for _ in range(2):  # twice, because rounding leaves a remainder
            for row in rows:
                rest = rest - (rest @ row) * row
        gone = rest.norm() <= RELATIVE_TOLERANCE * length
        rows.append(torch.zeros_like(rest) if gone else functional.normalize(rest, dim=0))
    return torch.stack(rows)


def cluster_basis(
    directions: Tensor,
    good_centers: Tensor,
    bad: Tensor,
    *,
    rank: int,
    orthogonalize: bool,
    seed: int,
) -> Tensor:
    """Each layer's direction, and further directions along which groups of bad prompts differ.

    Bad prompts may trigger the behaviour in several ways. They are grouped by k-means (k-means++;
    Arthur & Vassilvitskii 2007) on their residuals of all layers, scaled to unit length. Each group
    has a mean difference from the good centre. These differences share the layer's direction; the
    principal components of the rest are the further directions, the largest first. Each further
    direction gets the sign that agrees with the layer before, so that layers can be mixed.

    Args:
        directions: The first directions: [layers + 1, hidden], or several orthonormal directions
            per layer, [layers + 1, known, hidden].
        good_centers: Means or medians of the good residuals, [layers + 1, hidden].
        bad: Residuals of the bad prompts, [prompts, layers + 1, hidden].
        rank: Number of directions per layer, at most the number of prompts.
        orthogonalize: Project the good centre's direction out of the further directions too.
        seed: Seed of the grouping.

    Returns:
        float32 [layers + 1, rank, hidden], orthonormal except for rows of zeros.
    """
    from scipy.cluster.vq import kmeans2

    difference = bad.to(torch.float64) - good_centers.to(torch.float64)
    points = functional.normalize(difference[:, 1:], dim=-1).flatten(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # k-means may find fewer groups than asked for
        _, labels = kmeans2(points.numpy(), rank, minit="++", rng=seed)
    groups = [difference[torch.from_numpy(labels == group)] for group in sorted(set(labels))]
    means = torch.stack([group.mean(dim=0) for group in groups])
    axes = functional.normalize(good_centers.to(torch.float64), dim=-1) * orthogonalize
    known_ones = directions.to(torch.float64)
    if known_ones.dim() == 2:
        known_ones = known_ones.unsqueeze(1)
    missing = rank - known_ones.shape[1]
    rows = []
    before = means.new_zeros(missing, means.shape[-1])
    for layer, first in enumerate(known_ones):
        known = orthonormal(torch.cat([first, axes[layer].unsqueeze(0)]))
        further = _further(means[:, layer], known, missing)
        further = torch.where((further * before).sum(dim=-1, keepdim=True) < 0, -further, further)
        before = torch.where(further.any(dim=-1, keepdim=True), further, before)
        rows.append(orthonormal(torch.cat([first, further])))
    return torch.stack(rows).to(torch.float32)


def _further(means: Tensor, known: Tensor, count: int) -> Tensor:
    """Principal components of the groups' means, after `known` is projected out.

    Args:
        means: [groups, hidden].
        known: Orthonormal directions to project out, or zeros, [k, hidden].

    Returns:
        [count, hidden]; rows of zeros where there are fewer components above the noise.
    """
    rest = means - means.mean(dim=0)
    rest = rest - rest @ known.T @ known
    _, sizes, components = torch.linalg.svd(rest, full_matrices=False)
    # Without a difference between good and bad prompts, groups differ by noise only.
    significant = (sizes > RELATIVE_TOLERANCE * means.norm()) & known[0].any()
    components = torch.where(significant.unsqueeze(-1), components, 0.0)[:count]
    missing = components.new_zeros(count - len(components), components.shape[1])
    return torch.cat([components, missing])
