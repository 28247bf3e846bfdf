"""What memory a search needs: each part follows what it is said to follow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.memory_table import table

from heretic.model.room import Sizes, batch_size, fitting_rows
from heretic.search.need import Need, needed

SIZES = Sizes(
    weights=8_000_000_000,
    layers=36,
    hidden=2560,
    vocabulary=152_000,
    cache_per_token=147_456,
    itemsize=2,
)
GB = 10**9


def need(sizes: Sizes = SIZES, gigabytes: int = 24, **changes: Any) -> Need:
    values: dict[str, Any] = {
        "on_cpu": False,
        "reply": 100,
        "prompt": 256,
        "prompts": 100,
        "most_rows": 128,
        **changes,
    }
    return needed(sizes, gigabytes * GB, **values)


def test_the_parts_make_the_whole() -> None:
    found = need()
    assert found.total == found.weights + found.cache + found.originals + found.working
    assert found.cache == found.rows * found.columns * SIZES.cache_per_token
    assert found.to_dict()["total"] == found.total


@pytest.mark.parametrize("gigabytes", [10, 16, 24, 48, 80])
def test_rows_take_a_quarter_at_most_and_half_of_what_weights_leave(gigabytes: int) -> None:
    rows = fitting_rows(SIZES, gigabytes * GB, 356)
    taken = rows * SIZES.row(356)
    assert taken <= max(min(gigabytes / 4, (gigabytes - 8) / 2) * GB, SIZES.row(356))


def test_a_model_that_leaves_no_room_gets_one_row() -> None:
    assert fitting_rows(replace(SIZES, weights=30 * GB), 24 * GB, 356) == 1


def test_small_models_have_the_rows_that_they_had() -> None:
    """A quarter of the memory, where the weights take less than half."""
    small = replace(SIZES, weights=GB)
    assert fitting_rows(small, 24 * GB, 356) == 24 * GB // 4 // SIZES.row(356)


@pytest.mark.parametrize(("fitting", "size"), [(1, 1), (3, 2), (64, 64), (127, 64), (1000, 128)])
def test_batches_are_powers_of_two(fitting: int, size: int) -> None:
    assert batch_size(fitting, 128) == size


def test_more_memory_longer_replies_and_longer_prompts_need_more() -> None:
    first = need(gigabytes=16)
    assert need(gigabytes=48).rows > first.rows
    assert need(reply=400, most_rows=8, plans=1).cache > need(most_rows=8, plans=1).cache
    assert need(prompt=512, most_rows=8, plans=1).total > need(most_rows=8, plans=1).total


def test_no_more_rows_than_replies_are_wanted() -> None:
    assert need(prompts=3, plans=2, gigabytes=80).rows == 6


def test_fewer_texts_are_fitted_at_once_where_memory_is_short() -> None:
    assert need(gigabytes=10).working < need(gigabytes=80).working


def test_the_table_of_the_docs_is_up_to_date() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs" / "memory.md"
    assert table() in docs.read_text(encoding="utf-8")
