"""Figures that are clearly worse than the original's are told, and others are not."""

from __future__ import annotations

import pytest

from heretic.records import Score
from heretic.records.concerns import concerns


def share(name: str, count: int, total: int = 100, more: str = "") -> Score:
    values = (1.0,) * count + (0.0,) * (total - count)
    return Score(name, count / total, "none", f"{count}/{total}{more}", values=values)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (share("broken_replies", 6), share("broken_replies", 12), "12/100 replies are broken"),
        (share("broken_replies", 6), share("broken_replies", 9), ""),
        (
            share("broken_replies", 0, more=" (of 16 answers)"),
            share("broken_replies", 9, more=" (of 97 answers)"),
            "9/100 replies are broken, of 97 answers (of the original's: 0/100, of 16 answers)",
        ),
        (share("late_refusals", 0), share("late_refusals", 40), "decline only after 100 tokens"),
        (share("late_refusals", 40), share("late_refusals", 0), ""),
        (
            share("refusals", 90, more=" (1 evasion)"),
            share("refusals", 60, more=" (50 evasion, 2 partial)"),
            "50 of 100 replies evade (of the original's: 1)",
        ),
        (share("refusals", 10), share("refusals", 90), ""),  # the edit is judged by them anyway
        (
            share("capability", 230, 368, " (chance 22%, p 0.5)"),
            share("capability", 180, 368, " (chance 22%, p 0.4)"),
            "180/368 right endings (of the original's: 230/368)",
        ),
        (share("capability", 230, 368), share("capability", 229, 368), ""),
        (share("capability", 180, 368), share("capability", 230, 368), ""),
    ],
)
def test_what_is_told(before: Score, after: Score, told: str) -> None:
    found = concerns([before], [after], 100)
    assert len(found) == bool(told)
    assert all(told in text for text in found)


def test_a_model_beside_itself_has_nothing_told_of_it() -> None:
    names = "broken_replies", "late_refusals", "refusals", "capability"
    scores = [share(name, 30, more=" (20 evasion)") for name in names]
    assert concerns(scores, scores, 100) == []


def test_of_few_replies_one_or_none_says_nothing() -> None:
    few = [share("broken_replies", count, 6) for count in (0, 1)]
    assert concerns(few[:1], few[1:], 100) == []


def test_a_figure_that_only_one_has_is_left_out() -> None:
    assert concerns([], [share("late_refusals", 50)], 100) == []
