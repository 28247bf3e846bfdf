"""A share beside the original's."""

from __future__ import annotations

from heretic.records import Score
from heretic.records.comparison import beside_original


def score(values: list[float]) -> Score:
    return Score("capability", sum(values) / len(values), "none", "", values=tuple(values))


def test_it_tells_both_shares_and_the_difference_with_its_sign() -> None:
    original = score([1.0] * 63 + [0.0] * 37)
    after = score([0.0] * 3 + [1.0] * 61 + [0.0] * 36)
    assert beside_original(after, original) == (
        "61.0% (original 63.0%, difference -2.0 points [-6.7, +2.7])"
    )
    assert beside_original(original, after) == (
        "63.0% (original 61.0%, difference +2.0 points [-2.7, +6.7])"
    )


def test_what_was_not_measured_on_the_same_items_is_not_compared() -> None:
    assert beside_original(score([1.0, 0.0]), score([1.0, 0.0, 1.0])) is None
    assert beside_original(score([0.3, 0.1]), score([0.2, 0.4])) is None
