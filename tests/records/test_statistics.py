"""Intervals cover what they should, and paired tests see what unpaired ones would not."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heretic.records import Score
from heretic.records.statistics import (
    after_choice,
    indistinguishable,
    interval,
    paired,
    paired_shares,
)

RATES = st.lists(st.booleans(), min_size=2, max_size=60)
FIGURES = st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=2, max_size=20)


def rate(refused: int, of: int = 100) -> list[bool]:
    return [True] * refused + [False] * (of - refused)


# Wilson's interval as published tables and R's prop.test(correct = FALSE) give it
@pytest.mark.parametrize(
    ("refused", "low", "high"),
    [(0, 0.0, 0.0370), (3, 0.0103, 0.0845), (50, 0.4038, 0.5962), (100, 0.9630, 1.0)],
)
def test_intervals_of_rates_are_wilsons(refused: int, low: float, high: float) -> None:
    assert interval(rate(refused)) == pytest.approx((low, high), abs=5e-5)


@given(RATES)
def test_intervals_of_rates_hold_the_rate(values: list[bool]) -> None:
    found = interval(values)
    assert found is not None
    assert 0 <= found[0] <= math.fsum(values) / len(values) <= found[1] <= 1


@given(FIGURES)
@settings(max_examples=30)
def test_intervals_of_means_lie_among_the_values(values: list[float]) -> None:
    found = interval(values)
    assert found is not None
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= found[0] <= found[1] <= max(values) + slack


def test_intervals_of_means_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = random.Random(0)
    covered = 0
    for _ in range(100):
        found = interval([generator.expovariate(1.0) for _ in range(60)])
        assert found is not None
        covered += found[0] <= 1.0 <= found[1]
    assert 85 <= covered <= 99


@pytest.mark.parametrize("values", [[], [1.0], [0.5, math.nan], [0.5, math.inf]])
def test_there_is_no_interval_of_too_little(values: list[float]) -> None:
    assert interval(values) is None


def test_mcnemars_test_counts_only_prompts_that_changed() -> None:
    before = [1.0] * 10 + [0.0] * 90
    after = [0.0] * 8 + [1.0] * 2 + [1.0] * 2 + [0.0] * 88
    found = paired(before, after)
    assert found is not None
    assert found.difference == pytest.approx(-0.06)
    # 2 of 10 changes went up: the two-sided binomial tail
    assert found.p == pytest.approx(2 * sum(math.comb(10, k) for k in range(3)) / 2**10)
    assert not found.tells_apart


def test_pairs_tell_apart_what_spreads_widely_but_moves_together() -> None:
    before = [float(number) for number in range(40)]
    after = [value + 0.1 + 0.01 * (number % 3) for number, value in enumerate(before)]
    found = paired(before, after)
    assert found is not None
    assert found.tells_apart
    assert found.interval[0] > 0


@given(RATES | FIGURES)
def test_a_model_is_not_told_from_itself(values: list[float]) -> None:
    found = paired(values, values)
    assert found is not None
    assert (found.difference, found.p) == (0.0, 1.0)


def test_the_interval_of_a_paired_share_is_bonett_and_prices() -> None:
    """Their adjusted Wald interval, written out: 9 items gained and 3 lost of 100."""
    before = [1.0] * 40 + [0.0] * 60
    after = [0.0] * 3 + [1.0] * 37 + [1.0] * 9 + [0.0] * 51
    found = paired_shares(before, after)
    assert found is not None
    assert found.difference == pytest.approx(0.06)
    gained, lost = 10 / 102, 4 / 102
    reach = 1.959964 * math.sqrt((gained + lost - (gained - lost) ** 2) / 102)
    assert found.interval == pytest.approx((gained - lost - reach, gained - lost + reach), abs=1e-6)
    known = paired(before, after)
    assert known is not None
    assert found.p == known.p


@given(RATES, st.randoms(use_true_random=False))
def test_no_number_of_items_makes_a_paired_share_certain(values: list[bool], chance: random.Random):
    same = paired_shares(values, values)
    assert same is not None
    assert (same.difference, same.p) == (0.0, 1.0)
    assert -1 <= same.interval[0] < 0 < same.interval[1] <= 1
    assert same.interval[1] == pytest.approx(-same.interval[0])
    other = chance.sample(values, len(values))
    one, back = paired_shares(values, other), paired_shares(other, values)
    assert one is not None
    assert back is not None
    assert back.difference == -one.difference
    assert back.interval == pytest.approx((-one.interval[1], -one.interval[0]))


def test_intervals_of_paired_shares_cover_the_truth_about_as_often_as_they_say() -> None:
    chance = random.Random(5)
    covered = 0
    for _ in range(400):
        changes = chance.choices([(0, 1), (1, 0), (1, 1)], weights=[4, 8, 88], k=300)
        found = paired_shares([a for a, _ in changes], [b for _, b in changes])
        assert found is not None
        covered += found.interval[0] <= -0.04 <= found.interval[1]
    assert 0.92 <= covered / 400 <= 0.98


def test_what_is_no_share_is_not_paired_as_one() -> None:
    assert paired_shares([0.5, 1.0], [1.0, 0.0]) is None
    assert paired_shares([1.0], [0.0]) is None
    assert paired_shares([1.0, 0.0], [1.0]) is None
    assert paired_shares([math.nan, 0.0], [1.0, 0.0]) is None


def test_what_does_not_pair_up_is_not_compared() -> None:
    assert paired([1.0, 0.0], [1.0, 0.0, 1.0]) is None
    assert paired([], []) is None


def test_trials_are_alike_only_if_no_objective_tells_them_apart() -> None:
    def scores(refused: int, kl: float) -> tuple[Score, ...]:
        nats = tuple(kl * (1 + number % 5) for number in range(100))
        refusals = tuple(map(float, rate(refused)))
        return (
            Score("refusals", refused / 100, "minimize", "", values=refusals),
            Score("kl", kl, "minimize", "", values=nats),
            Score("length", float(refused), "none", ""),
        )

    assert indistinguishable(scores(3, 0.1), scores(4, 0.1))
    assert not indistinguishable(scores(3, 0.1), scores(30, 0.1))
    assert not indistinguishable(scores(3, 0.1), scores(3, 0.2))
    without = tuple(Score(score.name, score.value, "minimize", "") for score in scores(3, 0.1))
    assert not indistinguishable(without, without)


def score_of(values: list[float] | list[bool]) -> Score:
    value = math.fsum(values) / len(values)
    return Score("a", value, "minimize", "", interval=interval(values), values=tuple(values))


class TestAfterChoice:
    """Under many equal trials, the interval of the best one holds its true rate as promised."""

    def test_the_best_of_many_is_covered(self) -> None:
        rng, trials, misses, true = random.Random(3), 50, 0, 0.2
        for _ in range(100):
            counts = [sum(rng.random() < true for _ in range(100)) for _ in range(trials)]
            best = score_of(rate(min(counts)))
            low, high = after_choice(best, trials).interval or (0.0, 0.0)
            misses += not low <= true <= high
            assert best.interval is not None
        assert misses <= 12  # 5 are expected at most; 13 or more have a chance of 0.1%

    def test_it_grows_with_the_trials(self) -> None:
        for values in (rate(5), [0.1, 0.2, 0.4, 0.05, 0.3] * 8):
            score = score_of(values)
            widths = []
            for compared in (1, 2, 20, 200):
                low, high = after_choice(score, compared).interval or (0.0, 0.0)
                assert low <= score.value <= high
                widths.append(high - low)
            assert widths == sorted(widths)
            assert after_choice(score, 1) == score

    def test_nothing_is_invented(self) -> None:
        alone = Score("a", 0.1, "minimize", "0.1")
        assert after_choice(alone, 50) == alone
        nats = score_of([0.0, 0.0, 0.3, 0.001, 0.0002])
        assert (after_choice(nats, 500).interval or (-1.0,))[0] >= 0
