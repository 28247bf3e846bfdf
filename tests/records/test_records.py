"""Kernels, plans, domination, fronts, manifests."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heretic.errors import RunError
from heretic.records import (
    ATTENTION,
    MLP,
    AnyKernel,
    FittedKernel,
    Kernel,
    LayerWeights,
    Optimization,
    Plan,
    Score,
    Trial,
    dominates,
    front,
)
from heretic.runs.manifest import SCHEMA_VERSION, RunManifest

KERNEL = Kernel(1.0, 10.0, 0.2, 4.0)
PLAN = Plan.create(
    direction_scope="global",
    direction_index=7.25,
    kernels={MLP: KERNEL, ATTENTION: Kernel(0.8, 3.5, 0.0, 0.0)},
    row_normalization="full",
)
FREE = LayerWeights(((0.5, 0.25), (), (1.0,)))

finite = st.floats(-1e6, 1e6, allow_nan=False)
positive = st.floats(0, 1e6)
kernels = st.builds(Kernel, finite, finite, finite, positive)
free_kernels = st.builds(LayerWeights, st.lists(st.lists(finite, max_size=3).map(tuple)).map(tuple))
plans = st.builds(
    Plan.create,
    direction_scope=st.sampled_from(["global", "per layer", "mean"]),
    direction_index=positive,
    kernels=st.dictionaries(
        st.sampled_from([ATTENTION, MLP, "ssm.out_proj"]), kernels | free_kernels
    ),
    row_normalization=st.sampled_from(["none", "pre", "full"]),
    rank=st.integers(1, 5),
)


def trial(number: int, *values: float, optimization: Optimization = "minimize") -> Trial:
    scores = tuple(
        Score(f"s{index}", value, optimization, str(value)) for index, value in enumerate(values)
    )
    return Trial(number, PLAN, scores)


class TestKernel:
    @pytest.mark.parametrize(
        ("layer", "weight"),
        [(10, 1.0), (9, 0.8), (11, 0.8), (8, 0.6), (6, 0.2), (14, 0.2), (5, 0.0), (15, 0.0)],
    )
    def test_falls_linearly_from_the_peak_and_ends_at_the_distance(self, layer, weight):
        assert KERNEL.weight(layer) == pytest.approx(weight)

    def test_peak_between_layers(self):
        assert Kernel(1.0, 2.5, 0.0, 1.0).weight(2) == pytest.approx(0.5)

    def test_distance_zero_edits_the_peak_alone(self):
        kernel = Kernel(1.2, 3.0, 0.0, 0.0)
        assert [kernel.weight(layer) for layer in (2, 3, 4)] == [0.0, 1.2, 0.0]

    @given(kernels, st.integers(0, 200))
    def test_weights_lie_between_its_two_weights_or_are_zero(self, kernel, layer):
        low, high = sorted((kernel.max_weight, kernel.min_weight))
        slack = 1e-9 * max(abs(low), abs(high), 1.0)
        weight = kernel.weight(layer)
        assert weight == 0.0 or low - slack <= weight <= high + slack

    @given(kernels, st.integers(0, 200), st.integers(1, 4))
    def test_every_direction_has_the_same_weight(self, kernel, layer, rank):
        assert kernel.ablation_weights(layer, rank) == (kernel.weight(layer),) * rank

    def test_figures(self):
        assert KERNEL.figures() == (1.0, 10.0, 0.2, 4.0)


class TestWeights:
    @pytest.mark.parametrize(
        ("layer", "rank", "ablation_weights"),
        [
            (0, 1, (0.5,)),
            (0, 2, (0.5, 0.25)),
            (0, 3, (0.5, 0.25, 0.0)),
            (1, 2, (0.0, 0.0)),
            (2, 1, (1.0,)),
            (2, 2, (1.0, 0.0)),
            (3, 2, (0.0, 0.0)),
        ],
    )
    def test_what_is_not_given_is_left_alone(self, layer, rank, ablation_weights):
        assert FREE.ablation_weights(layer, rank) == ablation_weights

    @given(free_kernels, st.integers(0, 5), st.integers(1, 4))
    def test_every_direction_has_a_weight(self, kernel, layer, rank):
        assert len(kernel.ablation_weights(layer, rank)) == rank

    @pytest.mark.parametrize(
        ("layers", "figures"),
        [
            (FREE.layers, (1.0, 2.0, 0.0, None)),
            (((0.1,), (0.7,), (0.7,), (-0.2,)), (0.7, 1.0, -0.2, None)),
            (((0.0, 0.0), (0.0, 0.6)), (0.6, 1.0, 0.0, None)),
            (((), ()), (0.0, 0.0, 0.0, None)),
            ((), (0.0, 0.0, 0.0, None)),
        ],
    )
    def test_figures(self, layers, figures):
        assert LayerWeights(layers).figures() == figures

    def test_equal_ones_are_the_same(self):
        same = LayerWeights(((0.5, 0.25), (), (1.0,)))
        assert (same, hash(same)) == (FREE, hash(FREE))
        assert LayerWeights(((0.5, 0.25), (), (1.0, 0.0))) != FREE


class TestPlan:
    @given(plans)
    def test_survives_json(self, plan):
        restored = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
        assert restored == plan
        assert hash(restored) == hash(plan)

    def test_places_on_a_fit_survive_json(self):
        kernel = FittedKernel("0123456789abcdef" * 2, 2.25, 0.8)
        plan = Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={"attn": kernel, "mlp": replace(kernel, position=1.0)},
            row_normalization="none",
            rank=2,
        )
        assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
        assert plan.fits == (kernel.fit,)
        assert plan.ablation_weights(ATTENTION, 7) == (0.8, 0.8)
        assert PLAN.fits == ()

    def test_kernels_are_of_fits_or_none_is(self):
        kernels: dict[str, AnyKernel] = {"attn": FittedKernel("0" * 32, 1.0), "mlp": KERNEL}
        with pytest.raises(ValueError, match="some kernels are of a fit"):
            Plan.create(
                direction_scope="per layer",
                direction_index=None,
                kernels=kernels,
                row_normalization="none",
            )

    @pytest.mark.parametrize(
        "change",
        [
            {"fit": "../../secret"},
            {"fit": 3},
            {"fit": "abc"},
            {"position": -1.0},
            {"position": None},
            {"position": float("nan")},
            {"scale": "1"},
            {"scale": float("inf")},
        ],
    )
    def test_a_malformed_place_on_a_fit_is_refused(self, change):
        kernel = {"fit": "0" * 32, "position": 1.0, "scale": 1.0, **change}
        data = {**PLAN.to_dict(), "kernels": {ATTENTION: kernel}}
        with pytest.raises(RunError, match=r"attn\.o_proj"):
            Plan.from_dict(data)

    def test_order_of_components_is_no_matter(self):
        swapped = Plan.create(
            direction_scope="global",
            direction_index=7.25,
            kernels=dict(reversed(PLAN.kernels)),
            row_normalization="full",
        )
        assert swapped == PLAN

    def test_short_names_of_components(self):
        plan = Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={"attn": KERNEL, "mlp": KERNEL},
            row_normalization="none",
        )
        assert [name for name, _ in plan.kernels] == [ATTENTION, MLP]

    def test_index_is_dropped_where_it_means_nothing(self):
        plan = Plan.create(
            direction_scope="mean",
            direction_index=3.0,
            kernels={"attn": KERNEL},
            row_normalization="none",
        )
        assert plan.direction_index is None

    def test_a_component_without_kernel_has_no_weight(self):
        assert PLAN.ablation_weights("other", 10) == (0.0,)
        assert PLAN.ablation_weights(MLP, 10) == (1.0,)

    def test_there_is_one_ablation_weight_for_each_direction(self):
        plan = self.free(rank=3)
        assert plan.ablation_weights(MLP, 8) == pytest.approx((0.6, 0.6, 0.6))
        assert plan.ablation_weights(ATTENTION, 0) == (0.5, 0.25, 0.0)
        assert plan.ablation_weights("other", 0) == (0.0, 0.0, 0.0)

    @staticmethod
    def free(rank: int = 2, attention: AnyKernel = FREE) -> Plan:
        return Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={"attn": attention, "mlp": KERNEL},
            row_normalization="full",
            rank=rank,
        )

    def test_rank_and_weights_in_json(self):
        data = json.loads(json.dumps(self.free().to_dict()))
        assert data["rank"] == 2
        assert data["kernels"][ATTENTION] == {"weights": [[0.5, 0.25], [], [1.0]]}
        assert data["kernels"][MLP] == asdict(KERNEL)
        restored = Plan.from_dict(data)
        assert (restored, hash(restored)) == (self.free(), hash(self.free()))

    def test_plans_differ_by_rank_and_by_weights(self):
        assert self.free(1) != self.free(2)
        assert self.free(2, LayerWeights(((0.5, 0.25),))) != self.free(2)
        assert len({self.free(), self.free(1), self.free(2), PLAN}) == 3

    def test_plans_from_before_there_were_ranks(self):
        data = PLAN.to_dict()
        del data["rank"]
        assert Plan.from_dict(data) == PLAN
        assert PLAN.rank == 1

    @pytest.mark.parametrize("rank", [0, -1])
    def test_a_plan_removes_at_least_one_direction(self, rank):
        with pytest.raises(ValueError, match=f"rank is {rank}"):
            self.free(rank)

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            ({"rank": 0}, "rank is 0"),
            ({"rank": 1.5}, "rank is 1.5"),
            ({"rank": "2"}, "rank is '2'"),
            ({"rank": True}, "rank is True"),
            ({"rank": None}, "rank is None"),
            ({"kernels": {"attn": {"weights": 1.0}}}, r"attn.weights\[0\] is 1.0"),
            ({"kernels": {"attn": {"weights": None}}}, r"attn.weights\[0\] is None"),
            ({"kernels": {"attn": {"weights": [0.5]}}}, r"attn.weights\[0\] is 0.5"),
            ({"kernels": {"attn": {"weights": [[0.5], ["1"]]}}}, r"attn.weights\[1\] is '1'"),
            ({"kernels": {"attn": {"weights": [[True]]}}}, r"attn.weights\[0\] is True"),
            ({"kernels": {"attn": {"weights": [[float("nan")]]}}}, r"attn.weights\[0\] is nan"),
            ({"kernels": {"attn": {"weights": [], **asdict(KERNEL)}}}, "kernel of attn"),
            ({"kernels": {"attn": ["weights"]}}, "kernel of attn"),
            ({"kernels": {"attn": None}}, "kernel of attn"),
        ],
    )
    def test_what_is_malformed_is_named(self, damage, said):
        with pytest.raises(RunError, match=f"Not a plan: .*{said}"):
            Plan.from_dict({**PLAN.to_dict(), **damage})

    @pytest.mark.parametrize(
        "damage",
        [
            {"direction_scope": "somewhere"},
            {"row_normalization": "rows"},
            {"direction_index": None},
            {"direction_index": "7"},
            {"direction_index": -1},
            {"kernels": {"attn": {"max_weight": 1.0}}},
            {"kernels": {"attn": {**asdict(KERNEL), "max_weight": "1"}}},
            {"kernels": {"attn": {**asdict(KERNEL), "max_weight": True}}},
            {"kernels": {"attn": {**asdict(KERNEL), "min_weight": float("nan")}}},
            {"kernels": {"attn": {**asdict(KERNEL), "max_weight_position": float("inf")}}},
            {"kernels": {"attn": {**asdict(KERNEL), "min_weight_distance": -1.0}}},
            {"kernels": {"attn": {**asdict(KERNEL), "other": 1.0}}},
            {"kernels": {"attn": asdict(KERNEL), ATTENTION: asdict(KERNEL)}},
            {"kernels": {"attn": None}},
            {"kernels": None},
        ],
    )
    def test_malformed_plans_are_refused(self, damage):
        with pytest.raises(RunError, match="Not a plan"):
            Plan.from_dict({**PLAN.to_dict(), **damage})


class TestFront:
    def test_domination(self):
        assert dominates((1.0, 1.0), (1.0, 2.0))
        assert not dominates((1.0, 1.0), (1.0, 1.0))
        assert not dominates((0.0, 2.0), (1.0, 1.0))

    def test_sorted_by_objectives_and_failed_trials_left_out(self):
        failed = Trial(9, PLAN, (), "failed", "no")
        shown = front([trial(0, 0.5, 0.1), failed, trial(1, 0.0, 0.9), trial(2, 0.6, 0.2)])
        assert [one.number for one in shown] == [1, 0]

    def test_the_earliest_stands_for_equals(self):
        assert [one.number for one in front([trial(2, 1, 1), trial(1, 1, 1)])] == [1]

    def test_maximised_scores(self):
        rows = [trial(0, 0.5, optimization="maximize"), trial(1, 0.7, optimization="maximize")]
        assert [one.number for one in front(rows)] == [1]

    def test_scores_that_are_only_reported_do_not_count(self):
        first, second = trial(0, 0.5), trial(1, 0.7)
        report = Score("length", 1.0, "none", "1")
        rows = [Trial(one.number, PLAN, (*one.scores, report)) for one in (first, second)]
        assert rows[0].objectives() == (0.5,)
        assert [one.number for one in front(rows)] == [0]

    @given(
        st.integers(1, 3).flatmap(
            lambda n: st.lists(st.tuples(*[st.integers(0, 5)] * n), max_size=30)
        )
    )
    def test_is_what_no_other_dominates(self, values):
        trials = [trial(number, *map(float, row)) for number, row in enumerate(values)]
        shown = front(trials)
        objectives = [one.objectives() for one in shown]
        assert objectives == sorted(set(objectives))
        for one in trials:
            beaten = any(dominates(other.objectives(), one.objectives()) for other in trials)
            assert (one.objectives() in objectives) is not beaten
            if beaten:  # by something that is itself on the front
                assert any(dominates(row, one.objectives()) for row in objectives)
        assert front(shown) == shown
        assert front(reversed(trials)) == shown


class TestManifest:
    def manifest(self, **changes: Any) -> RunManifest:
        fields = {"model": "m", "digest": "0" * 12, "seed": 1, "fingerprint": {}, "settings": {}}
        return RunManifest(**{**fields, **changes})

    def test_survives_json(self):
        manifest = self.manifest(found={"batch_size": 8})
        assert RunManifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest

    def test_newer_ones_are_refused_even_with_fields_unheard_of(self):
        data = {**self.manifest().to_dict(), "schema_version": SCHEMA_VERSION + 1, "new": 1}
        with pytest.raises(RunError, match="Update Heretic"):
            RunManifest.from_dict(data)

    @pytest.mark.parametrize("damage", [{"schema_version": None}, {"unheard_of": 1}])
    def test_malformed_ones_are_refused(self, damage):
        with pytest.raises(RunError):
            RunManifest.from_dict({**self.manifest().to_dict(), **damage})


def test_ends_of_an_interval_are_read_without_powers_of_ten():
    score = Score("length", -21.4, "none", "-21.4 characters", interval=(-113.2, 39.4))
    assert score.with_interval() == "-21.4 characters [-110, 39]"
    assert replace(score, interval=(0.0123, 0.9)).with_interval().endswith("[0.012, 0.9]")
