"""Hypervolume of a front, and whether it still grows."""

from __future__ import annotations

from collections.abc import Sequence
from operator import lt

from heretic.records.trial import Trial, dominates, front

GROWTH = 1e-3
"""Relative growth of the hypervolume below which a search counts as stagnant."""

MARGIN = 0.1
"""Distance of the reference point beyond the worst value, as a share of an objective's range."""

Point = tuple[float, ...]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Volume of what `points` dominate within `reference` (all minimised).

    It slices along the last objective (While et al. 2006, IEEE Trans. Evol. Comput. 10(1)). This is
    exact, and fast enough for a few objectives and some hundred points.
    """
    inside = [point for point in points if all(map(lt, point, reference))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(point[0] for point in inside)
    if len(reference) == 2:
        return _area(inside, reference)
    inside.sort(key=lambda point: point[-1])
    ends = [point[-1] for point in inside[1:]] + [reference[-1]]
    volume = 0.0
    for count, (point, end) in enumerate(zip(inside, ends, strict=True), start=1):
        if end > point[-1]:
            below = [other[:-1] for other in inside[:count]]
            volume += (end - point[-1]) * hypervolume(_undominated(below), reference[:-1])
    return volume


def _area(points: Sequence[Point], reference: Point) -> float:
    """The hypervolume of points in a plane, all within the reference: a sweep from the left."""
    area, lowest = 0.0, reference[1]
    for x, y in sorted(points):
        if y < lowest:
            area += (reference[0] - x) * (lowest - y)
            lowest = y
    return area


def _undominated(points: Sequence[Point]) -> list[Point]:
    unique = set(points)
    return [point for point in unique if not any(dominates(other, point) for other in unique)]


def is_stagnant(trials: Sequence[Trial], patience: int) -> bool:
    """Whether the last `patience` complete trials have not improved the front.

    The reference point lies beyond the worst value of each objective, by a tenth of the range seen.
    So units do not matter, and the ends of the front count too.
    """
    complete = [trial for trial in trials if trial.state == "complete"]
    if patience == 0 or len(complete) <= patience:
        return False
    seen = [trial.objectives() for trial in complete if not trial.pruned]
    reference = tuple(map(_beyond, zip(*seen, strict=True)))
    before, now = (
        hypervolume([trial.objectives() for trial in front(rows)], reference)
        for rows in (complete[:-patience], complete)
    )
    return now <= before * (1 + GROWTH)


def _beyond(values: Sequence[float]) -> float:
    """A value that is a little worse than the worst, also if all values are equal."""
    return max(values) + (MARGIN * (max(values) - min(values)) or 1.0)
