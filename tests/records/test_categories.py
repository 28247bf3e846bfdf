"""Shares by category of the prompts."""

from __future__ import annotations

import pytest

from heretic.records.categories import CategoryTable, category_rows
from heretic.records.statistics import interval, wilson

CATEGORIES = ["b", "a", "b", None, "a", "b"]
BEFORE = (1.0, 1.0, 1.0, 0.0, 1.0, 0.0)
AFTER = (0.0, 1.0, 0.0, 0.0, 0.0, 0.0)


def test_each_prompt_counts_in_its_own_category_and_in_no_other():
    rows = category_rows(CATEGORIES, BEFORE, AFTER)
    assert [(row.category, row.n) for row in rows] == [("b", 3), ("a", 2), ("none", 1)]
    assert [row.before.count for row in rows] == [2, 2, 0]
    assert [row.after.count for row in rows] == [0, 1, 0]
    assert sum(row.n for row in rows) == len(CATEGORIES)
    assert sum(row.before.count for row in rows) == sum(BEFORE)
    assert sum(row.after.count for row in rows) == sum(AFTER)


def test_intervals_of_counts_are_wilsons_also_of_a_single_prompt():
    rows = category_rows(CATEGORIES, BEFORE, AFTER)
    assert [row.before.interval for row in rows] == [wilson(2, 3), wilson(2, 2), wilson(0, 1)]
    assert rows[1].after.interval == wilson(1, 2)
    assert rows[0].texts() == ("b", "3", "2/3 [0.21, 0.94]", "0/3 [0, 0.56]")


def test_weights_between_0_and_1_have_the_interval_of_a_mean():
    (row,) = category_rows(["a"] * 4, (1.0, 0.5, 0.5, 0.0), (0.5, 0.0, 0.0, 0.0))
    assert (row.before.count, row.after.count) == (2.0, 0.5)
    assert row.before.interval == interval((1.0, 0.5, 0.5, 0.0))


def test_case_and_white_space_make_no_category_of_their_own():
    rows = category_rows(["Old  maps", "old maps", "OLD MAPS "], (1.0,) * 3, (0.0,) * 3)
    assert [(row.category, row.n) for row in rows] == [("Old  maps", 3)]


def test_values_of_other_prompts_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        category_rows(CATEGORIES, BEFORE, AFTER[:-1])


def test_json_holds_the_rows():
    table = CategoryTable("refusals", "evaluation", category_rows(CATEGORIES, BEFORE, AFTER))
    first = table.to_dict()["rows"][0]
    assert first["category"] == "b"
    assert first["n"] == 3
    assert first["before"] == {"count": 2.0, "interval": wilson(2, 3)}
