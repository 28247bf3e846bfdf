"""The area under the ROC curve: its value, its interval, and comparisons in pairs."""

from __future__ import annotations

import itertools
import random
import statistics as plain

import pytest

from heretic.records.roc import separation
from heretic.records.statistics import paired


def by_counting(first: list[float], second: list[float]) -> float:
    """The share of pairs in which the first is larger; ties count half."""
    pairs = list(itertools.product(first, second))
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def drawn(seed: int, sizes: tuple[int, int], shift: float = 1.0) -> tuple[list[float], list[float]]:
    """Two groups of normal figures rounded to one digit, so that some are tied."""
    draw = random.Random(seed)
    first = [round(draw.gauss(shift, 1), 1) for _ in range(sizes[0])]
    return first, [round(draw.gauss(0, 1), 1) for _ in range(sizes[1])]


@pytest.mark.parametrize("sizes", [(1, 1), (1, 7), (9, 4), (40, 40)])
@pytest.mark.parametrize("seed", range(4))
def test_the_area_is_the_share_of_pairs_in_order(sizes: tuple[int, int], seed: int) -> None:
    first, second = drawn(seed, sizes)
    found = separation(first, second)
    assert found.area == pytest.approx(by_counting(first, second))
    assert separation(second, first).area == pytest.approx(1 - found.area)
    assert found.interval[0] <= found.area <= found.interval[1]


def test_the_values_mean_the_area_and_have_its_variance() -> None:
    """DeLong et al. 1988, by its definition: the variances of the two groups' components."""
    first, second = drawn(3, (30, 20))
    found = separation(first, second)
    of_first = [by_counting([one], second) for one in first]
    of_second = [by_counting(first, [one]) for one in second]
    variance = plain.pvariance(of_first) / 30 + plain.pvariance(of_second) / 20
    assert len(found.values) == 50
    assert plain.fmean(found.values) == pytest.approx(found.area)
    assert plain.pvariance(found.values) / 50 == pytest.approx(variance)


def test_groups_that_do_not_overlap_leave_room_for_doubt() -> None:
    few, many = (separation([1.0] * size, [0.0] * size) for size in (5, 100))
    assert few.area == many.area == 1.0
    assert few.interval[0] < many.interval[0] < 1.0 == many.interval[1]
    assert separation([0.0] * 5, [1.0] * 5).interval[0] == 0.0


def test_figures_that_say_nothing_are_a_half() -> None:
    found = separation([2.0] * 8, [2.0] * 8)
    assert found.area == 0.5
    assert set(found.values) == {0.5}
    low, high = found.interval
    assert low == pytest.approx(1 - high)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_most_intervals_cover_the_true_area(shift: float) -> None:
    true = plain.NormalDist().cdf(shift / 2**0.5)
    draws = 400
    covered = 0
    for seed in range(draws):
        draw = random.Random(seed)
        first = [draw.gauss(shift, 1) for _ in range(30)]
        second = [draw.gauss(0, 1) for _ in range(30)]
        low, high = separation(first, second).interval
        covered += low <= true <= high
    assert 0.92 <= covered / draws <= 0.995


def test_two_figures_of_the_same_prompts_are_compared_in_pairs() -> None:
    first, second = drawn(1, (40, 40), shift=2.0)
    same, none = separation(first, second), separation([0.0] * 40, [0.0] * 40)
    test = paired(same.values, same.values)
    assert test is not None
    assert (test.difference, test.p) == (0.0, 1.0)
    lost = paired(same.values, none.values)
    assert lost is not None
    assert lost.difference == pytest.approx(0.5 - same.area)
    assert lost.interval[1] < 0
    assert lost.tells_apart


def test_a_group_without_members_is_refused() -> None:
    with pytest.raises(ValueError, match="without members"):
        separation([], [1.0])
