"""How well a figure tells two groups of prompts apart: the area under the ROC curve.

The area is the probability that a prompt of the first group has the larger figure; a tie counts
half (Bamber 1975).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from heretic.records.statistics import CONFIDENCE, Interval


@dataclass(frozen=True, slots=True)
class Separation:
    """The area under the ROC curve of two groups.

    Attributes:
        area: From 0 to 1; 0.5 if the figure says nothing.
        interval: At `CONFIDENCE`, by method 5 of Newcombe (2006, Statistics in Medicine 25: 559).
            It solves |area - A| = z sqrt(V(A)) for A, where V is Hanley and McNeil's variance;
            unlike DeLong's, it keeps its width where the groups do not overlap at all.
        values: One per member, the first group's before the second's. Their mean is the area, and
            the variance of that mean is that of DeLong, DeLong and Clarke-Pearson (1988, equation
            5), with the number of members in place of that number less one. Two figures of the
            same members can therefore be compared in pairs.
    """

    area: float
    interval: Interval
    values: tuple[float, ...]


def separation(first: Sequence[float], second: Sequence[float]) -> Separation:
    """How well a figure tells two groups apart.

    Args:
        first: Finite figures of the group whose figures should be larger.
        second: Finite figures of the other group.

    Raises:
        ValueError: A group is empty.
    """
    if not first or not second:
        raise ValueError("a group without members cannot be told apart")
    of_first = _shares_below(first, second)
    of_second = [1 - share for share in _shares_below(second, first)]
    area = sum(of_first) / len(first)
    count = len(first) + len(second)
    values = [
        area + count / len(group) * (share - area)
        for group in (of_first, of_second)
        for share in group
    ]
    return Separation(area, _interval(area, len(first), len(second)), tuple(values))


def _shares_below(figures: Sequence[float], others: Sequence[float]) -> list[float]:
    """For each figure, the share of others that it exceeds; equal ones count half."""
    ordered = sorted(others)
    return [
        (bisect_left(ordered, figure) + bisect_right(ordered, figure)) / (2 * len(ordered))
        for figure in figures
    ]


def _interval(area: float, first: int, second: int) -> Interval:
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    more = (first + second) / 2 - 1

    def is_far(other: float) -> bool:
        """Whether an area is too far from the one that was measured."""
        spread = 1 + more * (1 - other) / (2 - other) + more * other / (1 + other)
        variance = other * (1 - other) * spread / (first * second)
        return (area - other) ** 2 > z * z * variance

    return _border(is_far, area, 0.0), _border(is_far, area, 1.0)


def _border(is_far: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where `is_far` becomes true between two figures, by bisection; `outside` if it never does."""
    if not is_far(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if is_far(middle) else (middle, outside)
    return inside
