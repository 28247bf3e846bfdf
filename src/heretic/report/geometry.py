"""Geometry of good and bad residuals, layer by layer: cosines, norms, separation.

Everything is computed in float64 from float32 residuals. Only numpy is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heretic.errors import HereticError
from heretic.method.median import weiszfeld

Floats = NDArray[np.float64]
Residuals = NDArray[np.floating]

FOLDS = 5
"""Of the cross-validated probe."""


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """Good and bad residuals at the output of one layer.

    g and b are the means of the good and the bad residuals, G and B their geometric medians,
    r = b - g and R = B - G. Cosines and the silhouette lie in [-1, 1]; a cosine with a zero vector
    is NaN. Lengths are in the units of the residual stream.

    Attributes:
        layer: 0-based.
        cos_means: Cosine of g and b.
        cos_medians: Cosine of G and B.
        cos_good_direction: Cosine of g and r.
        cos_good_direction_medians: Cosine of G and R.
        cos_bad_direction: Cosine of b and r.
        cos_bad_direction_medians: Cosine of B and R.
        cos_directions: Cosine of r and R. Near 1, outliers have little influence.
        cos_previous: Cosine of r of this layer and r of the layer before; NaN for the first layer.
        norm_good: Length of g.
        norm_good_median: Length of G.
        norm_bad: Length of b.
        norm_bad_median: Length of B.
        norm_direction: Length of r.
        norm_direction_median: Length of R.
        silhouette: Mean silhouette coefficient of the two sets (Rousseeuw 1987), Euclidean.
        probe: Balanced accuracy of a linear probe on prompts that it was not fitted to; see
            `probe_accuracy`. 0.5 is chance, NaN for sets of fewer than two prompts.
    """

    layer: int
    cos_means: float
    cos_medians: float
    cos_good_direction: float
    cos_good_direction_medians: float
    cos_bad_direction: float
    cos_bad_direction_medians: float
    cos_directions: float
    cos_previous: float
    norm_good: float
    norm_good_median: float
    norm_bad: float
    norm_bad_median: float
    norm_direction: float
    norm_direction_median: float
    silhouette: float
    probe: float


def residual_geometry(good: Residuals, bad: Residuals) -> list[LayerGeometry]:
    """Geometry of every layer's output.

    Args:
        good: Residuals of the good prompts, [prompts, layers + 1, hidden]. Row 0 of the second axis
            holds the embeddings, which are equal for all prompts; it is left out.
        bad: Residuals of the bad prompts, with the same layers and width.

    Returns:
        One record per layer, layers in order.

    Raises:
        HereticError: The shapes do not match, or a set is empty.
    """
    check_residuals(good, bad)
    rows: list[LayerGeometry] = []
    previous: Floats | None = None
    for layer in range(good.shape[1] - 1):
        row, previous = _layer_geometry(
            layer,
            good[:, layer + 1].astype(np.float64),
            bad[:, layer + 1].astype(np.float64),
            previous,
        )
        rows.append(row)
    return rows


def check_residuals(good: Residuals, bad: Residuals) -> None:
    """Check that two sets of residuals are not empty and have matching shapes.

    Raises:
        HereticError: They are empty, or not [prompts, layers + 1, hidden] with equal last axes.
    """
    if good.ndim != 3 or bad.ndim != 3 or good.shape[1:] != bad.shape[1:]:
        raise HereticError(
            f"Residuals of shapes {good.shape} and {bad.shape} do not match.",
            remedy="Both must be [prompts, layers + 1, hidden] with the same layers and width.",
        )
    if not (good.shape[0] and bad.shape[0] and good.shape[1] > 1):
        raise HereticError(
            "A set of residuals is empty.", remedy="Give at least one prompt of each kind."
        )


def silhouette(first: Floats, second: Floats) -> float:
    """Mean silhouette coefficient of two sets of points, [n, hidden] and [m, hidden].

    The coefficient of a point is (b - a) / max(a, b), with its mean distance a to the other points
    of its set and b to the points of the other set; 0 for a set of one point (Rousseeuw 1987). Near
    1 the sets are far apart; at 0 or below they are mixed.
    """
    across = _distances(first, second)
    values = np.concatenate(
        [
            _silhouettes(_distances(first, first), across),
            _silhouettes(_distances(second, second), across.T),
        ]
    )
    return float(values.mean())


def probe_accuracy(first: Floats, second: Floats, folds: int = FOLDS) -> float:
    """How well a linear probe tells two sets of points apart that it has not seen.

    The probe is ridge regression on labels of -1 and 1 (Hoerl and Kennard 1970), whose penalty is
    the mean squared length of the centred points. It is fitted to all folds but one and judged on
    that one, fold by fold; consecutive prompts lie in different folds.

    Args:
        first, second: [n, hidden] and [m, hidden].

    Returns:
        The mean of the shares of each set that are told right; NaN for a set of one point.
    """
    folds = min(folds, len(first), len(second))
    if folds < 2:
        return float("nan")
    points = np.concatenate([first, second])
    labels = np.concatenate([-np.ones(len(first)), np.ones(len(second))])
    fold = np.concatenate([np.arange(len(first)), np.arange(len(second))]) % folds
    right = np.concatenate([_told_right(points, labels, fold == one) for one in range(folds)])
    order = np.concatenate([np.flatnonzero(fold == one) for one in range(folds)])
    return float(np.mean([right[labels[order] == label].mean() for label in (-1.0, 1.0)]))


def _told_right(points: Floats, labels: Floats, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a probe that is fitted to the other points is right on these."""
    mean = points[~kept].mean(axis=0)
    seen, told = points[~kept] - mean, labels[~kept]
    gram = seen @ seen.T
    penalty = float(np.trace(gram)) / len(seen)
    if penalty == 0.0:
        return np.zeros(int(kept.sum()), dtype=bool)
    weights = np.linalg.solve(gram + penalty * np.eye(len(seen)), told - told.mean())
    # Sets of different sizes: the threshold lies half way between the two means.
    fitted = gram @ weights
    threshold = (fitted[told < 0].mean() + fitted[told > 0].mean()) / 2
    found = (points[kept] - mean) @ seen.T @ weights - threshold
    right: NDArray[np.bool_] = np.sign(found) == labels[kept]
    return right


def _silhouettes(within: Floats, across: Floats) -> Floats:
    count = len(within)
    if count == 1:
        return np.zeros(1)
    own = within.sum(axis=1) / (count - 1)
    other = across.mean(axis=1)
    larger = np.maximum(own, other)
    values: Floats = np.divide(other - own, larger, out=np.zeros(count), where=larger > 0)
    return values


def _distances(left: Floats, right: Floats) -> Floats:
    """Euclidean distances [n, m]; exactly 0 on the diagonal if both sets are the same object."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :]
    result: Floats = np.sqrt(np.maximum(squares - 2 * left @ right.T, 0.0))
    if left is right:
        np.fill_diagonal(result, 0.0)
    return result


def _layer_geometry(
    layer: int, good: Floats, bad: Floats, previous: Floats | None
) -> tuple[LayerGeometry, Floats]:
    g, b = good.mean(axis=0), bad.mean(axis=0)
    g_median, b_median = weiszfeld(good), weiszfeld(bad)
    r, r_median = b - g, b_median - g_median
    row = LayerGeometry(
        layer=layer,
        cos_means=_cosine(g, b),
        cos_medians=_cosine(g_median, b_median),
        cos_good_direction=_cosine(g, r),
        cos_good_direction_medians=_cosine(g_median, r_median),
        cos_bad_direction=_cosine(b, r),
        cos_bad_direction_medians=_cosine(b_median, r_median),
        cos_directions=_cosine(r, r_median),
        cos_previous=float("nan") if previous is None else _cosine(r, previous),
        norm_good=float(np.linalg.norm(g)),
        norm_good_median=float(np.linalg.norm(g_median)),
        norm_bad=float(np.linalg.norm(b)),
        norm_bad_median=float(np.linalg.norm(b_median)),
        norm_direction=float(np.linalg.norm(r)),
        norm_direction_median=float(np.linalg.norm(r_median)),
        silhouette=silhouette(good, bad),
        probe=probe_accuracy(good, bad),
    )
    return row, r


def _cosine(left: Floats, right: Floats) -> float:
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    if norms == 0.0:
        return float("nan")
    return float(np.clip(left @ right / norms, -1.0, 1.0))
