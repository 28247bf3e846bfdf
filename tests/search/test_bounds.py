"""Fronts that crowd a bound of the search space, and fronts that do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.search_case import N_LAYERS, Recorder, make_study

from heretic.records import ATTENTION, MLP, Kernel, LayerWeights, Plan, Score
from heretic.search.bounds import FEWEST, bound_warnings
from heretic.search.path import PathSpace
from heretic.search.space import INDEX, SCOPE, SearchSpace

SPACE = SearchSpace(N_LAYERS, [ATTENTION, MLP])
WEIGHT = f"{ATTENTION}.max_weight"


def params(**changes: Any) -> dict[str, Any]:
    """Parameters in the middle of their ranges, but for these."""
    middle: dict[str, Any] = {name: bounds.middle for name, bounds in SPACE.ranges.items()}
    return {**middle, SCOPE: "global", **changes}


def front(count: int, *, of: int, name: str = WEIGHT, value: float = 1.49, **more: Any) -> Any:
    """So many trials, of which some have a parameter of that value."""
    return [params(**{name: value}, **more)] * count + [params(**more)] * (of - count)


def test_most_of_a_front_at_a_bound_is_told():
    (told,) = bound_warnings(SPACE, front(3, of=4))
    assert told == (
        f"3 of 4 trials on the front have {WEIGHT} at the upper bound of its range (1.5): better "
        "edits may lie beyond it. Set search_space to wide."
    )
    (told,) = bound_warnings(SPACE, front(4, of=6, value=0.81))
    assert f"4 of 6 trials on the front have {WEIGHT} at the lower bound of its range (0.8)" in told


@pytest.mark.parametrize(
    "trials",
    [
        [],
        front(2, of=4),  # half of them
        front(3, of=3),  # too few
        front(5, of=5, value=1.45),  # near, but not at it
        [{}] * 9,  # plans from outside the space
    ],
)
def test_other_fronts_are_not(trials: Sequence[dict[str, Any]]):
    assert bound_warnings(SPACE, trials) == []


def test_parameters_that_a_plan_does_not_use_do_not_count():
    last = SPACE.ranges[INDEX].high
    scopes: list[dict[str, Any]] = [{SCOPE: "global"}, {SCOPE: "per"}]
    found = [front(5, of=5, name=INDEX, value=last, **scope) for scope in scopes]
    assert len(bound_warnings(SPACE, found[0])) == 1
    assert bound_warnings(SPACE, found[1]) == []
    name = f"{MLP}.max_weight_position"
    at_bound: dict[str, Any] = {"name": name, "value": SPACE.ranges[name].low}
    assert len(bound_warnings(SPACE, front(5, of=5, **at_bound))) == 1
    off: dict[str, Any] = {f"{MLP}.max_weight": -0.1}
    assert bound_warnings(SPACE, front(5, of=5, **at_bound, **off)) == []


@pytest.mark.parametrize(
    ("name", "side"),
    [
        (f"{MLP}.max_weight", "low"),  # no edit of the component
        (f"{MLP}.max_weight_position", "high"),  # the last layer
        (f"{MLP}.min_weight", "low"),
        (f"{MLP}.min_weight", "high"),
    ],
)
def test_bounds_by_nature_are_no_bounds_of_the_search(name: str, side: str):
    value = getattr(SPACE.ranges[name], side)
    assert bound_warnings(SPACE, front(5, of=5, name=name, value=value)) == []


def test_the_remedy_is_one_that_helps():
    name = f"{ATTENTION}.min_weight_distance"
    (told,) = bound_warnings(SPACE, front(5, of=5, name=name, value=SPACE.ranges[name].high))
    assert told.endswith("Give plans beyond it as start_plans.")  # wide has the same range
    wide = SearchSpace(N_LAYERS, [ATTENTION, MLP], "wide")
    middle = {name: bounds.middle for name, bounds in wide.ranges.items()}
    (told,) = bound_warnings(wide, [{**middle, WEIGHT: 4.99}] * FEWEST)
    assert told.endswith("Give plans beyond it as start_plans.")


def path() -> PathSpace:
    plans = [
        Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={MLP: LayerWeights(((weight,), (weight,)))},
            row_normalization="full",
        )
        for weight in (0.1, 0.5, 1.0)
    ]
    return PathSpace(plans)


def test_a_path_has_bounds_too():
    scale = f"{MLP}.scale"
    (told,) = bound_warnings(path(), [{"position": 1.0, scale: 1.5}] * FEWEST)
    assert f"have {scale} at the upper bound of its range (1.5)" in told
    assert "search_space to wide" in told
    assert bound_warnings(path(), [{"position": 0.0, scale: 1.0}] * FEWEST) == []  # no edit


def searched(tmp_path: Path, wanted: float) -> list[str]:
    """Warnings of a search whose best plans have this largest weight of attention.

    The second figure keeps the front long: it grows where the first one falls.
    """

    def score(plan: Plan) -> tuple[Score, ...]:
        kernels = dict(plan.kernels)
        kernel, other = kernels[ATTENTION], kernels[MLP]
        assert isinstance(kernel, Kernel)
        assert isinstance(other, Kernel)
        missed = abs(kernel.max_weight - wanted)
        figures = (missed * 10 + 1 - other.max_weight / 2, missed * 10 + other.max_weight / 2)
        names = ("refusals", "kl_divergence")
        return tuple(
            Score(name, value, "minimize", f"{value:.3f}")
            for name, value in zip(names, figures, strict=True)
        )

    recorder = Recorder()
    evaluate: Callable[..., Any] = lambda plans: [score(plan) for plan in plans]  # noqa: E731
    make_study(tmp_path).run(evaluate, 80, recorder)
    return [text for text in recorder.notices("warning") if f"{WEIGHT} at the" in text]


def test_a_search_tells_it_at_its_end(tmp_path: Path):
    (told,) = searched(tmp_path / "planted", wanted=3.0)
    assert "at the upper bound of its range (1.5)" in told
    assert searched(tmp_path / "healthy", wanted=1.1) == []
