"""Warns where a front crowds a bound of the search space: a better plan may lie beyond it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from heretic.search.path import POSITION, PathSpace
from heretic.search.space import INDEX, SCOPE, Range, SearchSpace, Space

NEAR = 0.02
"""Share of a range that lies at its bound."""

FEWEST = 4
"""Fewest trials of which most can lie at a bound by more than chance: with uniform draws, three of
four do for one parameter in 30,000."""

Params = Mapping[str, str | float]


def bound_warnings(space: Space, front: Sequence[Params]) -> list[str]:
    """One sentence for each bound at which most trials of a front lie.

    Bounds at which an edit ends by its nature (no weight, the last layer) are left out, and so are
    parameters of trials that do not use them.

    Args:
        front: The parameters of the trials on the front; empty for plans from outside the space.
    """
    told = []
    for name, bounds in space.ranges.items():
        values = [float(params[name]) for params in front if _uses(params, name)]
        if len(values) < FEWEST or bounds.high <= bounds.low:
            continue
        width = NEAR * (bounds.high - bounds.low)
        sides = {
            "lower": [value for value in values if value <= bounds.low + width],
            "upper": [value for value in values if value >= bounds.high - width],
        }
        for side, near in sides.items():
            if 2 * len(near) > len(values) and not _is_natural(space, name, side, bounds):
                end = bounds.low if side == "lower" else bounds.high
                told.append(
                    f"{len(near)} of {len(values)} trials on the front have {name} at the {side} "
                    f"bound of its range ({end:.4g}): better edits may lie beyond it. "
                    f"{_remedy(space, name, side)}"
                )
    return told


def _uses(params: Params, name: str) -> bool:
    """Whether a trial's plan depends on this parameter."""
    if name not in params or (name == INDEX and params.get(SCOPE) != "global"):
        return False
    weight = params.get(f"{name.rpartition('.')[0]}.max_weight")
    return weight is None or name.endswith(".max_weight") or float(weight) > 0


def _is_natural(space: Space, name: str, side: str, bounds: Range) -> bool:
    """Whether nothing lies beyond this bound, or nothing that another range could hold."""
    low = side == "lower"
    if isinstance(space, PathSpace):
        return name == POSITION and low  # hardly any edit
    kind = name.rpartition(".")[2]
    if kind == "min_weight":  # a fraction of the largest weight
        return True
    if kind == "max_weight_position":
        return bounds.low <= 0 if low else True  # the first and the last layer
    return low and (kind == "min_weight_distance" or (kind == "max_weight" and bounds.low <= 0))


def _remedy(space: Space, name: str, side: str) -> str:
    if isinstance(space, PathSpace):
        return "Set search to tpe and search_space to wide to search without this path."
    if isinstance(space, SearchSpace) and space.kind == "default" and _is_wider(name, side):
        return "Set search_space to wide."
    return "Give plans beyond it as start_plans."


def _is_wider(name: str, side: str) -> bool:
    """Whether the space `wide` goes beyond this bound of `default`."""
    kind = name.rpartition(".")[2]
    return kind == "max_weight" or (kind == "max_weight_position" and side == "lower")
