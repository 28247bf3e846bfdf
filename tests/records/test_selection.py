"""Rows of a front by name, and by a bound on the first objective."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.records.test_records import PLAN

from heretic.errors import SettingsError
from heretic.records import Optimization, Score, Trial, front
from heretic.records.selection import (
    Within,
    knee,
    named_rows,
    names_by_row,
    row_within,
    share_of,
    trial_in_row,
)

figures = st.integers(0, 1000).map(lambda number: number / 8)
"""Eighths, so that scaling by powers of two leaves no rounding."""


def trial(
    number: int, *values: float, of: tuple[Optimization, ...] = (), total: int = 100
) -> Trial:
    """A trial whose first score is a count; `of` says how the scores are optimised."""
    minimize: Optimization = "minimize"
    kinds = of or (minimize,) * len(values)
    first = f"{values[0] * total:g}/{total} (1 partial)"
    scores = tuple(
        Score(f"s{place}", value, kind, str(value) if place else first)
        for place, (value, kind) in enumerate(zip(values, kinds, strict=True))
    )
    return Trial(number, PLAN, scores)


def front_of(*points: tuple[float, ...]) -> list[Trial]:
    return front(trial(number, *point) for number, point in enumerate(points))


BENT = front_of((0.0, 0.8), (0.03, 0.2), (0.10, 0.1), (0.5, 0.05), (0.9, 0.01))


class TestNames:
    def test_ends_and_knee(self):
        assert named_rows(BENT) == {"fewest": 0, "knee": 2, "least-damage": 4}
        assert names_by_row(BENT) == [("fewest",), (), ("knee",), (), ("least-damage",)]

    def test_one_row_has_all(self):
        assert names_by_row(front_of((0.2, 0.1))) == [("fewest", "knee", "least-damage")]
        assert named_rows([]) == {}
        assert names_by_row([]) == []

    def test_without_a_knee_it_is_the_row_of_the_fewest(self):
        two = front_of((0.0, 0.3), (0.7, 0.1))
        straight = front_of((0.0, 0.3), (0.35, 0.2), (0.7, 0.1))
        outwards = front_of((0.0, 0.3), (0.6, 0.29), (0.7, 0.1))
        for rows in (two, straight, outwards):
            assert named_rows(rows)["knee"] == 0

    def test_a_maximised_objective(self):
        kinds: tuple[Optimization, ...] = ("maximize", "minimize")
        rows = front(
            trial(n, value, kl, of=kinds)
            for n, (value, kl) in enumerate([(1.0, 0.8), (0.9, 0.1), (0.1, 0.05)])
        )
        assert named_rows(rows) == {"most": 0, "knee": 1, "least-damage": 2}

    def test_reported_scores_do_not_count(self):
        kinds: tuple[Optimization, ...] = ("none", "minimize", "minimize")
        rows = front(
            trial(n, 0.5 - n / 10, first, kl, of=kinds)
            for n, (first, kl) in enumerate([(0.0, 0.8), (0.1, 0.1), (0.9, 0.05)])
        )
        assert named_rows(rows) == {"fewest": 0, "knee": 1, "least-damage": 2}

    def test_a_third_objective_does_not_count(self):
        rows = front_of((0.0, 0.8, 5.0), (0.1, 0.1, 5.0), (0.1, 0.7, 0.0), (0.9, 0.05, 1.0))
        assert [rows[row].objectives()[:2] for row in named_rows(rows).values()] == [
            (0.0, 0.8),
            (0.1, 0.1),
            (0.9, 0.05),
        ]

    def test_first_objectives_that_are_all_equal(self):
        rows = front_of((0.1, 0.5, 0.0), (0.1, 0.2, 1.0), (0.1, 0.3, 0.5))
        assert {rows[row].objectives()[1] for row in named_rows(rows).values()} == {0.2}

    def test_one_objective(self):
        assert named_rows(front_of((0.4,), (0.2,))) == {"fewest": 0, "knee": 0, "least-damage": 0}

    @given(st.lists(st.tuples(figures, figures), min_size=1, max_size=12))
    def test_the_knee_lies_on_the_front_and_has_no_units(self, points):
        rows = front_of(*points)
        found = [row.objectives() for row in rows]
        place = knee(found)
        assert 0 <= place < len(found)
        assert knee([(x * 4 + 16, y / 2 - 8) for x, y in found]) == place
        (x, y), (low, top), (right, bottom) = found[place], found[0], found[-1]
        # No row lies further beyond the line through the ends.
        beyond = [(right - low) * (top - b) - (a - low) * (top - bottom) for a, b in found]
        assert (right - low) * (top - y) - (x - low) * (top - bottom) == pytest.approx(max(beyond))


class TestRows:
    def test_by_number_and_by_name(self):
        assert trial_in_row(BENT, 1) is BENT[1]
        assert trial_in_row(BENT, "knee") is BENT[2]

    @pytest.mark.parametrize(
        ("index", "said"), [(5, "rows 0 to 4"), (-1, "rows 0 to 4"), ("most", "fewest, knee, l")]
    )
    def test_that_do_not_exist(self, index: int | str, said: str):
        with pytest.raises(SettingsError, match=said):
            trial_in_row(BENT, index)

    @pytest.mark.parametrize("index", [0, "knee"])
    def test_of_an_empty_front(self, index: int | str):
        with pytest.raises(SettingsError, match="no trial has completed"):
            trial_in_row([], index)


class TestBound:
    @pytest.mark.parametrize(("most", "row"), [(0, 0), (2, 0), (3, 1), (9, 1), (10, 2), (100, 4)])
    def test_is_met_by_the_least_damage_within_it(self, most: int, row: int):
        assert row_within(BENT, most) == Within(row, met=True)

    def test_is_not_met(self):
        rows = front_of((0.05, 0.8), (0.5, 0.05))
        assert row_within(rows, 4) == Within(0, met=False)

    def test_counts_prompts_not_shares(self):
        rows = [trial(0, 3 / 7, 0.2, total=7), trial(1, 4 / 7, 0.1, total=7)]
        assert row_within(rows, 3) == Within(0, met=True)
        assert row_within(rows, 4) == Within(1, met=True)

    @pytest.mark.parametrize("most", [0, 3, 7, 20])
    def test_as_a_share_is_what_the_counts_are_compared_with(self, most: int):
        scores = trial(0, most / 7, 0.2, total=7).scores
        assert share_of(most, scores) == scores[0].value
        assert share_of(None, scores) is None

    def test_a_third_objective_does_not_count(self):
        rows = front_of((0.01, 0.5, 0.0), (0.02, 0.2, 9.0), (0.03, 0.4, 0.5))
        assert rows[row_within(rows, 3).row].objectives() == (0.02, 0.2, 9.0)

    @pytest.mark.parametrize(
        "scores",
        [
            (Score("kl", 0.1, "minimize", "0.1"), Score("refusals", 0.1, "minimize", "1/10")),
            (Score("refusals", 0.1, "maximize", "1/10"), Score("kl", 0.1, "minimize", "0.1")),
            (Score("refusals", 0.1, "none", "1/10"),),
        ],
    )
    def test_on_what_is_no_count_to_be_minimised(self, scores: tuple[Score, ...]):
        with pytest.raises(SettingsError, match="max_refusals needs a first objective"):
            row_within([Trial(0, PLAN, scores)], 3)
        with pytest.raises(SettingsError, match="max_refusals needs a first objective"):
            share_of(3, scores)
