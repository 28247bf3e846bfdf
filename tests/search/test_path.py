"""The space around a gradient sweep: the sweep's plans are nodes, all others lie near its path."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.search.test_space import Drawing
from tests.support.search_case import evaluate, make_study

from heretic.records import ATTENTION, MLP, FittedKernel, Kernel, LayerWeights, Plan
from heretic.search.path import POSITION, SCALES, PathSpace

LAYERS = 3
amount = st.integers(-20_000, 20_000).map(lambda n: n / 10_000)  # as rounded as a sweep's


def plan(attention: list[tuple[float, ...]], mlp: list[tuple[float, ...]]) -> Plan:
    return Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels={ATTENTION: LayerWeights(tuple(attention)), MLP: LayerWeights(tuple(mlp))},
        row_normalization="full",
        rank=len(attention[0]),
    )


def rows(rank: int) -> st.SearchStrategy[list[tuple[float, ...]]]:
    return st.lists(st.tuples(*[amount] * rank), min_size=LAYERS, max_size=LAYERS)


SWEEPS = st.integers(1, 3).flatmap(
    lambda rank: st.lists(st.builds(plan, rows(rank), rows(rank)), min_size=1, max_size=6)
)
SWEEP = [plan([(n / 10, -n / 5)] * LAYERS, [(1.0, float(n))] * LAYERS) for n in range(4)]


def scales(space: PathSpace, value: float = 1.0) -> dict[str, str | float]:
    return {name: value for name in space.ranges if name != POSITION}


def test_parameters_are_few():
    space = PathSpace(SWEEP)
    assert list(space.ranges) == [POSITION, f"{ATTENTION}.scale", f"{MLP}.scale"]
    assert (space.ranges[POSITION].low, space.ranges[POSITION].high) == (0.0, 3.0)
    assert space.ranges[f"{MLP}.scale"] == SCALES
    assert space.choices == {}


@given(SWEEPS)
def test_the_plans_of_the_sweep_are_nodes(sweep: list[Plan]):
    space = PathSpace(sweep)
    for each in sweep:
        params = space.plan_to_params(each)
        assert params is not None
        assert all(bounds.holds(float(params[name])) for name, bounds in space.ranges.items())
        assert space.plan(params) == each  # to the last bit


@given(SWEEPS, st.floats(0, 1))
def test_other_plans_lie_between_their_neighbours(sweep: list[Plan], place: float):
    space = PathSpace(sweep)
    position = place * (len(sweep) - 1)
    found = space.plan({POSITION: position, **scales(space)})
    before = sweep[int(position)]
    after = sweep[min(int(position) + 1, len(sweep) - 1)]
    assert (found.direction_scope, found.row_normalization) == ("per layer", "full")
    assert found.rank == before.rank
    for component in (ATTENTION, MLP):
        for layer in range(LAYERS):
            ablation_weights = [
                each.ablation_weights(component, layer) for each in (before, found, after)
            ]
            for one, middle, other in zip(*ablation_weights, strict=True):
                assert min(one, other) - 1e-12 <= middle <= max(one, other) + 1e-12


def test_halfway_is_the_mean():
    space = PathSpace(SWEEP)
    found = space.plan({POSITION: 1.5, **scales(space)})
    assert found.ablation_weights(ATTENTION, 0) == pytest.approx((0.15, -0.3))
    assert found.ablation_weights(MLP, 2) == pytest.approx((1.0, 1.5))


def test_scales_scale_one_component():
    space = PathSpace(SWEEP)
    params = {POSITION: 2.0, **scales(space), f"{MLP}.scale": 1.5}
    found = space.plan(params)
    assert found.ablation_weights(ATTENTION, 1) == SWEEP[2].ablation_weights(ATTENTION, 1)
    assert found.ablation_weights(MLP, 1) == pytest.approx((1.5, 3.0))


def test_suggestions_are_plans_of_their_parameters():
    space = PathSpace(SWEEP)
    drawing = Drawing(0.25)
    found = space.suggest(drawing)
    assert drawing.ranges == {name: (r.low, r.high) for name, r in space.ranges.items()}
    assert drawing.choices == {}
    scale = SCALES.low + 0.25 * (SCALES.high - SCALES.low)
    assert found == space.plan({POSITION: 0.75, **scales(space, scale)})


@pytest.mark.parametrize(
    "foreign",
    [
        plan([(0.15, -0.3)] * LAYERS, [(1.0, 1.5)] * LAYERS),  # on the path, but not a node
        replace(SWEEP[0], row_normalization="none"),
        replace(SWEEP[0], rank=1),
        Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={ATTENTION: Kernel(1.0, 1.0, 0.5, 2.0), MLP: Kernel(1.0, 1.0, 0.5, 2.0)},
            row_normalization="full",
        ),
    ],
)
def test_other_plans_have_no_parameters(foreign: Plan):
    assert PathSpace(SWEEP).plan_to_params(foreign) is None


def test_a_single_plan():
    space = PathSpace(SWEEP[1:2])
    assert (space.ranges[POSITION].low, space.ranges[POSITION].high) == (0.0, 0.0)
    assert space.suggest(Drawing(1.0)).ablation_weights(MLP, 0) == pytest.approx((1.5, 1.5))
    assert space.plan_to_params(SWEEP[1]) == {POSITION: 0.0, **scales(space)}


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.parametrize("count", [1, 4])
def test_it_is_searched_around_its_nodes(tmp_path, sampler: str, count: int):
    sweep = [plan([(n / 3,)] * 24, [(n / 2,)] * 24) for n in range(1, count + 1)]
    space = PathSpace(sweep)
    study = make_study(
        tmp_path / "run", sampler=sampler, start_plans=sweep, space=space, n_startup_trials=count
    )
    trials = study.run(evaluate, count + 4)
    assert [trial.plan for trial in trials[:count]] == sweep
    assert len({trial.plan for trial in trials}) == count + 4
    assert all(space.plan_to_params(trial.plan) is None for trial in trials[count:])


FITTED = [
    Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels={name: FittedKernel("0" * 32, float(n)) for name in (ATTENTION, MLP)},
        row_normalization="none",
    )
    for n in range(4)
]


def test_between_points_of_a_fit_a_plan_is_a_place_on_it():
    space = PathSpace(FITTED)
    for node, each in enumerate(FITTED):
        assert space.plan(space.plan_to_params(each) or {}) == each
        assert space.plan({POSITION: float(node), **scales(space)}) == each
    found = space.plan({POSITION: 1.25, f"{ATTENTION}.scale": 0.7, f"{MLP}.scale": 1.1})
    assert found.kernel(ATTENTION) == FittedKernel("0" * 32, 1.25, 0.7)
    assert found.kernel(MLP) == FittedKernel("0" * 32, 1.25, 1.1)
    assert found.row_normalization == "none"


def test_before_the_first_point_of_a_fit_its_vectors_are_scaled_down():
    space = PathSpace(FITTED)
    low = space.ranges[POSITION].low
    assert -1 < low < 0
    found = space.plan({POSITION: -0.75, f"{ATTENTION}.scale": 1.0, f"{MLP}.scale": 0.8})
    assert found.kernel(ATTENTION) == FittedKernel("0" * 32, 0.0, 0.25)
    assert found.kernel(MLP) == FittedKernel("0" * 32, 0.0, 0.2)
    assert space.plan({POSITION: 0.0, **scales(space)}) == FITTED[0]
