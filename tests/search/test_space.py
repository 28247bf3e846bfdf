"""The search space: its ranges, and plans to parameters and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heretic.records import ATTENTION, MLP, Kernel, LayerWeights, Plan
from heretic.search.space import SearchSpace

COMPONENTS = (MLP, ATTENTION)
LAST = 30  # L of the specification, for 31 layers


class Drawing:
    """Stands in for an Optuna trial: draws at a fixed place of each range, and keeps a record."""

    def __init__(self, place: float = 0.5, choice: int = 0) -> None:
        self.place, self.choice = place, choice
        self.ranges: dict[str, tuple[float, float]] = {}
        self.choices: dict[str, tuple[str, ...]] = {}

    def suggest_float(self, name: str, low: float, high: float) -> float:
        self.ranges[name] = (low, high)
        return low + self.place * (high - low)

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        self.choices[name] = tuple(choices)
        return choices[self.choice]


def space(kind="default", **options) -> SearchSpace:
    return SearchSpace(LAST + 1, COMPONENTS, kind, **options)


def test_default_ranges():
    drawing = Drawing()
    space().suggest(drawing)
    assert drawing.choices == {"direction_scope": ("global", "per layer")}
    assert drawing.ranges == {
        "direction_index": (0.4 * LAST, 0.9 * LAST),
        "attn.o_proj.max_weight": (0.8, 1.5),
        "attn.o_proj.max_weight_position": (0.6 * LAST, LAST),
        "attn.o_proj.min_weight": (0, 1),
        "attn.o_proj.min_weight_distance": (1, 0.6 * LAST),
        "mlp.down_proj.max_weight": (-0.25, 1.5),
        "mlp.down_proj.max_weight_position": (0.6 * LAST, LAST),
        "mlp.down_proj.min_weight": (0, 1),
        "mlp.down_proj.min_weight_distance": (1, 0.6 * LAST),
    }


def test_wide_ranges():
    drawing = Drawing()
    space("wide").suggest(drawing)
    assert drawing.choices == {"direction_scope": ("global", "per layer", "mean")}
    for component in COMPONENTS:
        assert drawing.ranges[f"{component}.max_weight"] == (0, 5)
        assert drawing.ranges[f"{component}.max_weight_position"] == (0, LAST)
        assert drawing.ranges[f"{component}.min_weight_distance"] == (1, 0.6 * LAST)
    assert drawing.ranges["direction_index"] == (0.4 * LAST, 0.9 * LAST)


def test_other_components_have_the_ranges_of_attention():
    drawing = Drawing()
    plan = SearchSpace(LAST + 1, ["ssm.out_proj"], "default").suggest(drawing)
    assert drawing.ranges["ssm.out_proj.max_weight"] == (0.8, 1.5)
    assert [name for name, _ in plan.kernels] == ["ssm.out_proj"]


def test_order_of_components_changes_nothing():
    first, second = Drawing(), Drawing()
    SearchSpace(9, (MLP, ATTENTION)).suggest(first)
    SearchSpace(9, (ATTENTION, MLP, MLP)).suggest(second)
    assert list(first.ranges) == list(second.ranges)


def test_index_is_drawn_for_every_scope():
    drawing = Drawing(choice=1)
    plan = space().suggest(drawing)
    assert "direction_index" in drawing.ranges
    assert (plan.direction_scope, plan.direction_index) == ("per layer", None)


def test_min_weight_is_a_fraction_and_absolute_in_the_plan():
    plan = space().suggest(Drawing(0.5))
    kernel = dict(plan.kernels)[ATTENTION]
    assert isinstance(kernel, Kernel)
    assert kernel.max_weight == pytest.approx(1.15)
    assert kernel.min_weight == pytest.approx(0.575)


def test_mlp_weight_below_zero_is_off():
    plan = space().suggest(Drawing(0.1))
    kernel = dict(plan.kernels)[MLP]
    assert isinstance(kernel, Kernel)
    assert (kernel.max_weight, kernel.min_weight) == (0.0, 0.0)
    assert all(plan.ablation_weights(MLP, layer) == (0,) for layer in range(LAST + 1))


@pytest.mark.parametrize("normalization", ["none", "pre", "full"])
def test_row_normalization_is_passed_on(normalization):
    plan = space(row_normalization=normalization).suggest(Drawing())
    assert plan.row_normalization == normalization


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_models_of_few_layers(n_layers):
    drawing = Drawing(1.0)
    plan = SearchSpace(n_layers, COMPONENTS).suggest(drawing)
    assert all(low <= high for low, high in drawing.ranges.values())
    assert plan.direction_index == pytest.approx(0.9 * (n_layers - 1))


@pytest.mark.parametrize("arguments", [(0, COMPONENTS), (4, ())])
def test_nothing_to_search(arguments):
    with pytest.raises(ValueError, match="at least one"):
        SearchSpace(*arguments)


@given(st.floats(0, 1), st.integers(0, 1), st.sampled_from(["default", "wide"]))
def test_plans_go_to_parameters_and_back(place, choice, kind):
    searched = space(kind)
    plan = searched.suggest(Drawing(place, choice))
    params = searched.plan_to_params(plan)
    assert params is not None
    again = searched.plan(params)
    assert again.direction_scope == plan.direction_scope
    assert again.direction_index == pytest.approx(plan.direction_index)
    for (name, kernel), (other_name, other) in zip(plan.kernels, again.kernels, strict=True):
        assert name == other_name
        for field in Kernel.__dataclass_fields__:
            assert getattr(other, field) == pytest.approx(getattr(kernel, field), abs=1e-9)


def outside(**changes) -> Plan:
    kernel: dict[str, Any] = {
        "max_weight": 1.0,
        "max_weight_position": 25.0,
        "min_weight": 0.5,
        "min_weight_distance": 5.0,
    }
    fields: dict[str, Any] = {
        "direction_scope": "per layer",
        "direction_index": None,
        "row_normalization": "full",
        "rank": 1,
        "components": COMPONENTS,
    }
    kernel |= {name: value for name, value in changes.items() if name in kernel}
    fields |= {name: value for name, value in changes.items() if name in fields}
    components = fields.pop("components")
    return Plan.create(kernels={name: Kernel(**kernel) for name in components}, **fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_weight": 3.0},
        {"max_weight": -0.1},
        {"max_weight": 0.0},  # with a min_weight, which a fraction of nothing cannot give
        {"max_weight_position": 2.0},
        {"min_weight": 1.2},
        {"min_weight_distance": 0.5},
        {"direction_scope": "mean"},
        {"direction_scope": "global", "direction_index": 1.0},
        {"row_normalization": "none"},
        {"rank": 2},
        {"components": [MLP]},
        {"components": [MLP, ATTENTION, "ssm.out_proj"]},
    ],
)
def test_plans_outside_the_space_have_no_parameters(changes):
    assert space().plan_to_params(outside()) is not None
    assert space().plan_to_params(outside(**changes)) is None


class TestRank:
    def test_is_no_parameter_by_default(self):
        drawing = Drawing()
        assert space().suggest(drawing).rank == 1
        assert "rank" not in drawing.choices

    @pytest.mark.parametrize("choice", [0, 1])
    def test_is_searched_up_to_the_largest(self, choice):
        searched = space(max_rank=2)
        drawing = Drawing(choice=choice)
        plan = searched.suggest(drawing)
        assert drawing.choices["rank"] == ("1", "2")
        assert plan.rank == choice + 1
        params = searched.plan_to_params(plan)
        assert params is not None
        assert list(params)[:2] == ["direction_scope", "rank"]
        assert (params["rank"], searched.plan(params).rank) == (str(plan.rank), plan.rank)

    @given(st.floats(0, 1), st.integers(0, 1), st.integers(1, 4))
    def test_goes_to_parameters_and_back(self, place, choice, rank):
        searched = space(max_rank=4)
        plan = replace(searched.suggest(Drawing(place, choice)), rank=rank)
        params = searched.plan_to_params(plan)
        assert params is not None
        again = searched.plan(params)
        assert (again.rank, again.direction_scope) == (rank, plan.direction_scope)

    @pytest.mark.parametrize(("max_rank", "rank"), [(1, 2), (2, 3), (4, 5)])
    def test_beyond_the_largest_is_outside(self, max_rank, rank):
        assert space(max_rank=max_rank).plan_to_params(replace(outside(), rank=rank)) is None


@pytest.mark.parametrize("max_rank", [1, 3])
def test_free_form_kernels_are_outside(max_rank):
    weights = LayerWeights(((1.0,),) * (LAST + 1))
    for kernels in (dict.fromkeys(COMPONENTS, weights), {MLP: weights}):
        plan = replace(outside(), kernels=tuple({**dict(outside().kernels), **kernels}.items()))
        assert space(max_rank=max_rank).plan_to_params(plan) is None


@given(st.floats(0, 1), st.integers(0, 1))
def test_inducing_mirrors_the_weights(place: float, choice: int) -> None:
    removing, inducing = (space(induce=induce).suggest(Drawing(place, choice)) for induce in (0, 1))
    for (name, kernel), (_, mirrored) in zip(removing.kernels, inducing.kernels, strict=True):
        assert isinstance(kernel, Kernel)
        assert isinstance(mirrored, Kernel)
        assert mirrored == replace(
            kernel, max_weight=-kernel.max_weight, min_weight=-kernel.min_weight
        ), name


@given(st.floats(0, 1), st.integers(0, 1))
def test_plans_that_induce_go_there_and_back(place: float, choice: int) -> None:
    there = space(induce=True)
    plan = there.suggest(Drawing(place, choice))
    params = there.plan_to_params(plan)
    assert params is not None
    again = there.plan(params)
    for (_, kernel), (_, other) in zip(plan.kernels, again.kernels, strict=True):
        assert isinstance(kernel, Kernel)
        assert isinstance(other, Kernel)
        assert other.max_weight == pytest.approx(kernel.max_weight)
        assert other.min_weight == pytest.approx(kernel.min_weight)
    removing = space().plan_to_params(plan)
    assert removing is None or all(kernel.figures()[0] == 0 for _, kernel in plan.kernels)
