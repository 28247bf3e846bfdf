"""Hypervolume, and the stop rule made from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.search_case import OUTSIDE, Recorder, evaluate, make_study

from heretic.events import SearchFinished
from heretic.records import Plan, Score, Trial, dominates
from heretic.records.volume import hypervolume, is_stagnant

SIDE = 5
"""Points are drawn from a grid with this many steps per side; some lie beyond the reference."""

NO_PLAN = Plan.create(
    direction_scope="per layer", direction_index=None, kernels={}, row_normalization="none"
)


@pytest.mark.parametrize(
    ("points", "reference", "volume"),
    [
        ([], (1.0,), 0.0),
        ([(0.25,), (0.5,)], (1.0,), 0.75),
        ([(1.0,)], (1.0,), 0.0),
        ([(0.0, 0.0)], (2.0, 3.0), 6.0),
        ([(0.0, 1.0), (1.0, 0.0)], (2.0, 2.0), 3.0),
        ([(0.0, 2.0), (3.0, 0.0)], (2.0, 2.0), 0.0),  # on the edge, and outside
        ([(-1.0, -1.0)], (0.0, 0.0), 1.0),
        ([(0.0, 0.5), (0.5, 0.5), (0.0, 0.75)], (1.0, 1.0), 0.5),  # ties
        ([(0.0, 0.0, 0.0)], (1.0, 2.0, 3.0), 6.0),
        ([(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)], (2.0, 2.0, 2.0), 7.0),
        ([(0, 1), (1, 0)], (2, 2), 3.0),  # integers
    ],
)
def test_known_volumes(points: list[Any], reference: Any, volume: float) -> None:
    assert hypervolume(points, reference) == pytest.approx(volume)


def points(dimensions: int) -> st.SearchStrategy[list[tuple[float, ...]]]:
    number = st.integers(0, SIDE + 1).map(float)
    return st.lists(st.tuples(*[number] * dimensions), max_size=7)


@given(drawn=st.integers(1, 3).flatmap(lambda n: st.tuples(st.just(n), points(n))))
def test_it_is_the_number_of_cells_that_are_dominated(
    drawn: tuple[int, list[tuple[float, ...]]],
) -> None:
    dimensions, front = drawn
    cells = itertools.product(range(SIDE), repeat=dimensions)
    count = sum(any(all(map(float.__le__, p, map(float, cell))) for p in front) for cell in cells)
    assert hypervolume(front, (float(SIDE),) * dimensions) == count


@given(points(3), st.randoms())
def test_order_repetition_and_dominated_points_change_nothing(
    front: list[tuple[float, ...]], order: Any
) -> None:
    reference = (float(SIDE),) * 3
    volume = hypervolume(front, reference)
    worse = [tuple(value + 1 for value in point) for point in front]
    more = [*front, *front, *worse]
    order.shuffle(more)
    assert hypervolume(more, reference) == volume
    best = [point for point in front if not any(dominates(other, point) for other in front)]
    assert hypervolume(best, reference) == volume


# --- the stop rule -------------------------------------------------------------------------


def trials(*values: Sequence[float] | None, pruned: Sequence[int] = ()) -> list[Trial]:
    """Trials with these objectives; None stands for a failed trial."""
    return [
        Trial(number, NO_PLAN, (), "failed", "it broke")
        if row is None
        else Trial(
            number,
            NO_PLAN,
            tuple(
                Score(f"s{i}", value, "minimize", "", bound=number in pruned)
                for i, value in enumerate(row)
            ),
        )
        for number, row in enumerate(values)
    ]


class TestIsStagnant:
    def test_not_before_there_are_more_trials_than_patience(self):
        same = trials((1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
        assert not is_stagnant([], 1)
        assert not is_stagnant(same[:2], 2)
        assert is_stagnant(same, 2)

    def test_zero_is_never(self):
        assert not is_stagnant(trials(*[(1.0, 1.0)] * 50), 0)

    def test_a_better_front_is_growth(self):
        before = [(1.0, 0.0), (0.0, 1.0), (0.8, 0.8)]
        assert not is_stagnant(trials(*before, (0.5, 0.5), (0.9, 0.9)), 2)
        assert is_stagnant(trials(*before, (0.5, 0.5), (0.9, 0.9)), 1)

    def test_an_end_of_the_front_is_growth(self):
        assert not is_stagnant(trials((1.0, 0.0), (0.0, 1.0)), 1)
        assert not is_stagnant(trials((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)), 1)

    @pytest.mark.parametrize("other", [0.0, 0.7])
    def test_growth_where_an_objective_does_not_vary(self, other):
        assert not is_stagnant(trials((other, 1.0), (other, 0.5)), 1)
        assert is_stagnant(trials((other, 0.5), (other, 1.0)), 1)

    def test_less_than_a_thousandth_is_none(self):
        before = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
        assert is_stagnant(trials(*before, (0.5, 0.4999)), 1)
        assert not is_stagnant(trials(*before, (0.5, 0.49)), 1)

    @pytest.mark.parametrize("unit", [1e-3, 1e6])
    def test_units_do_not_matter(self, unit):
        before = [(unit, 0.0), (0.0, 1.0), (0.5 * unit, 0.5)]
        assert is_stagnant(trials(*before, (0.5 * unit, 0.4999)), 1)
        assert not is_stagnant(trials(*before, (0.5 * unit, 0.49)), 1)

    def test_failed_and_raced_trials(self):
        front = [(1.0, 0.0), (0.0, 1.0)]
        assert is_stagnant(trials(*front, (1.0, 1.0), None, None), 1)
        assert not is_stagnant(trials(*front, None, None), 1)  # failed trials do not count
        # The scores of a pruned trial are only bounds: the best that it could have reached.
        assert is_stagnant(trials(*front, (0.1, 0.1), pruned=[2]), 1)

    def test_one_and_three_objectives(self):
        assert not is_stagnant(trials((2.0,), (1.0,)), 1)
        assert is_stagnant(trials((1.0,), (2.0,)), 1)
        assert not is_stagnant(trials((1.0, 1.0, 1.0), (1.0, 1.0, 0.5)), 1)

    def test_maximised_ones(self):
        grown = [
            Trial(i, NO_PLAN, (Score("gain", value, "maximize", ""),))
            for i, value in enumerate((1.0, 2.0))
        ]
        assert not is_stagnant(grown, 1)
        assert is_stagnant(grown[::-1], 1)


def flat(plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
    """Every plan is as good as any other."""
    return [
        tuple(Score(name, 0.5, "minimize", "") for name in ("refusals", "kl_divergence"))
        for _ in plans
    ]


class TestPatience:
    def reason(self, study: Any, n_trials: int, measured: Any = flat) -> str:
        recorder = Recorder()
        study.run(measured, n_trials, recorder)
        return str(recorder.of(SearchFinished)[-1].reason)

    def test_ends_a_search_whose_front_does_not_grow(self, tmp_path: Path):
        study = make_study(tmp_path / "run", patience=3)
        assert self.reason(study, 20) == "stagnant"
        assert study.completed == 4
        assert self.reason(study, 20) == "stagnant"  # the same after a resume
        assert study.completed == 4

    def test_more_trials_that_are_asked_for_are_given(self, tmp_path: Path):
        study = make_study(tmp_path / "run", patience=3)
        assert self.reason(study, 20) == "stagnant"
        study.run(flat, 6, to_the_end=True)
        assert study.completed == 6

    def test_is_told_after_a_whole_batch(self, tmp_path: Path):
        study = make_study(tmp_path / "run", patience=3, plans_at_once=3)
        assert self.reason(study, 20) == "stagnant"
        assert study.completed == 6

    def test_the_last_trial_makes_it_done(self, tmp_path: Path):
        assert self.reason(make_study(tmp_path / "run", patience=3), 4) == "done"

    def test_zero_is_off(self, tmp_path: Path):
        study = make_study(tmp_path / "run", patience=0)
        assert self.reason(study, 15) == "done"
        assert study.completed == 15

    def test_start_plans_are_evaluated_all_the_same(self, tmp_path: Path):
        study = make_study(tmp_path / "run", patience=1, start_plans=OUTSIDE)
        assert self.reason(study, 20) == "stagnant"
        assert [trial.plan for trial in study.trials] == list(OUTSIDE)

    def test_growth_keeps_a_search_going(self, tmp_path: Path):
        study = make_study(tmp_path / "run", patience=2)
        assert self.reason(study, 12, shrinking()) == "done"
        other = make_study(tmp_path / "other", patience=12)
        assert self.reason(other, 10, evaluate) == "done"


def shrinking() -> Any:
    """Each plan is a little better than the one before."""
    values = itertools.count(0)

    def measured(plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
        return [
            tuple(
                Score(name, value, "minimize", "")
                for value in [math.exp(-next(values) / 4)]
                for name in ("refusals", "kl_divergence")
            )
            for _ in plans
        ]

    return measured
