"""Where names stand beside points of a picture, so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STEPS = (-0.7, 1.2, -1.8, 2.3, -2.9, -4.0, -5.1, -6.2)
"""Places in heights of a line, above the point or below it, in the order of preference."""


@dataclass(frozen=True, slots=True)
class Named:
    """A name beside a point.

    Attributes:
        x: Of the point, from the left.
        y: Of the point, from the top.
        width: Of the name.
    """

    x: float
    y: float
    width: float


def lifts(names: Sequence[Named], line: float, bottom: float) -> list[float]:
    """How far below its point each name stands; above it where negative.

    Names may stand to the left or to the right of their points.

    Args:
        line: Height of a line of text.
        bottom: Where the picture ends, from the top.
    """
    placed: list[tuple[Named, float]] = []
    found = []
    for name in names:
        lift = next(
            (lift for step in STEPS if _is_free(name, lift := step * line, line, bottom, placed)),
            STEPS[0] * line,
        )
        placed.append((name, name.y + lift))
        found.append(lift)
    return found


def _is_free(
    name: Named, lift: float, line: float, bottom: float, placed: Sequence[tuple[Named, float]]
) -> bool:
    y = name.y + lift
    if lift > 0 and y > bottom:  # there stand the figures of the axis
        return False
    return all(
        abs(y - other_y) >= line or abs(name.x - other.x) >= name.width + other.width
        for other, other_y in placed
    )
