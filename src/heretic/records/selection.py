"""Choosing from a front: rows by number or name, and the best row within a bound.

A front is what `heretic.records.front` returns. Its first two objectives count here, whichever way
each is optimised; further ones do not, since a choice between three figures has no knee.

| name | row |
| --- | --- |
| `fewest` (`most` if it is maximised) | the best first objective, whatever it costs |
| `least-damage` | the best second objective |
| `knee` | the largest distance from the line through those two, towards better values (Das 1999; |
| | Branke et al. 2004), with both objectives scaled to run from 0 to 1 between them |

The knee does not depend on units. Where no row lies on the better side of that line, such as on a
front of two rows, it is the row of `fewest`. On a front of one row, all names mean that row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from heretic.errors import SettingsError
from heretic.records.choices import RowName
from heretic.records.trial import Score, Trial

ROW_NAMES: tuple[RowName, ...] = get_args(RowName)

_ROUNDING = 9
"""Digits to which sums of scaled objectives are compared: rows on the line itself are no knee."""


def named_rows(front: Sequence[Trial]) -> dict[RowName, int]:
    """The row that each name means, counted from 0; empty for an empty front."""
    if not front:
        return {}
    points = [trial.objectives()[:2] for trial in front]
    rows = range(len(points))
    return {
        best_of(front[0].scores): min(rows, key=lambda row: points[row]),
        "knee": knee(points),
        "least-damage": min(rows, key=lambda row: points[row][::-1]),
    }


def best_of(scores: Sequence[Score]) -> RowName:
    """`fewest`, or `most` if the first objective is maximised."""
    objective = first_objective(scores)
    return "most" if objective is not None and objective.optimization == "maximize" else "fewest"


def first_objective(scores: Sequence[Score]) -> Score | None:
    """The first score that the search minimises or maximises; None if there is none."""
    return next((score for score in scores if score.optimization != "none"), None)


def names_by_row(front: Sequence[Trial]) -> list[tuple[RowName, ...]]:
    """The names of each row, in the order of the rows; most rows have none."""
    named = named_rows(front)
    return [tuple(name for name in named if named[name] == row) for row in range(len(front))]


def knee(points: Sequence[tuple[float, ...]]) -> int:
    """The place of the knee among points of one or two objectives, all minimised.

    Args:
        points: At least one point.
    """
    rows = range(len(points))
    first, last = min(points), min(points, key=lambda point: point[::-1])
    widths = [abs(a - b) for a, b in zip(first, last, strict=True)]
    if not all(widths):
        return points.index(first)

    def along(row: int) -> float:
        """1 on the line through the ends, less on its better side."""
        lows = (first[0], last[1])
        scaled = zip(points[row], lows, widths, strict=True)
        return round(sum((value - low) / width for value, low, width in scaled), _ROUNDING)

    return min(rows, key=lambda row: (along(row), points[row]))


def trial_in_row(front: Sequence[Trial], index: int | str) -> Trial:
    """The trial in a row of the front.

    Args:
        index: The row, counted from 0, or its name.

    Raises:
        SettingsError: There is no such row.
    """
    last = len(front) - 1
    if last < 0:
        raise SettingsError(
            f"trial_index is {index}, but no trial has completed yet.",
            remedy="Continue the search.",
        )
    if isinstance(index, str):
        return front[_named(named_rows(front), index)]
    if 0 <= index <= last:
        return front[index]
    raise SettingsError(
        f"trial_index is {index}, but the front has the rows 0 to {last}.",
        remedy=f"Give a number from 0 to {last}.",
    )


def _named(rows: Mapping[RowName, int], name: str) -> int:
    found = next((row for known, row in rows.items() if known == name), None)
    if found is None:
        raise SettingsError(
            f"trial_index is {name}, but the rows of this front that have names are "
            f"{', '.join(rows)}.",
            remedy="Give one of these, or a number.",
        )
    return found


@dataclass(frozen=True, slots=True)
class Within:
    """The row that a bound on the first objective chooses.

    Attributes:
        row: Counted from 0.
        met: Whether the bound is met; if not, it is the row that comes nearest.
    """

    row: int
    met: bool


def row_within(front: Sequence[Trial], most: int) -> Within:
    """The best second objective among rows whose first objective counts at most `most` prompts.

    If no row counts so few, it is the row of `fewest`.

    Args:
        front: Not empty.

    Raises:
        SettingsError: The first objective is not a count of prompts that is minimised.
    """
    counts = [counted(trial.scores) for trial in front]
    points = [trial.objectives()[:2][::-1] for trial in front]
    inside = [row for row, count in enumerate(counts) if count <= most + 1e-6]
    if inside:
        return Within(min(inside, key=lambda row: points[row]), met=True)
    return Within(named_rows(front)["fewest"], met=False)


def counted(scores: Sequence[Score]) -> float:
    """How many prompts the first objective counts.

    Raises:
        SettingsError: It is not a count of prompts that is minimised.
    """
    score, total = _bounded(scores)
    return score.value * total


def share_of(most: int | None, scores: Sequence[Score]) -> float | None:
    """The value of the first objective that means this count of prompts; None without a count.

    Raises:
        SettingsError: It is not a count of prompts that is minimised.
    """
    return None if most is None else most / _bounded(scores)[1]


def _bounded(scores: Sequence[Score]) -> tuple[Score, int]:
    score = first_objective(scores)
    if score is None or not score.total or score.optimization != "minimize":
        raise no_bound("there is none" if score is None else f"the first is {score.name}")
    return score, score.total


def no_bound(found: str) -> SettingsError:
    """The error for a bound on an objective that cannot have one.

    Args:
        found: What the objectives are, to end a sentence.
    """
    return SettingsError(
        "max_refusals needs a first objective that counts prompts and is minimized, and a second "
        f"one; here {found}.",
        remedy="Leave max_refusals out, or change the order or the optimization of the scorers.",
    )
