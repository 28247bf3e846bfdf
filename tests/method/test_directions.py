"""From residuals to directions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional

from heretic.method.directions import (
    RunningMean,
    cluster_basis,
    difference_directions,
    geometric_median,
    layer_basis,
    orthonormal,
    sparing_directions,
    winsorize,
)
from heretic.records import DirectionScope, Plan


def residuals(seed: int, rows: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, 16, generator=generator) + 3.0


def test_running_mean_is_the_mean_whatever_the_batches() -> None:
    data = residuals(0)
    mean = RunningMean()
    for part in data.split([1, 7, 32]):
        mean.add(part)
    torch.testing.assert_close(mean.result(), data.double().mean(dim=0), rtol=1e-14, atol=0)
    assert mean.result().dtype == torch.float64


def test_running_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no residuals"):
        RunningMean().result()


def test_directions_are_unit_differences_and_row_0_is_zero() -> None:
    good, bad = residuals(1).mean(dim=0), residuals(2).mean(dim=0)
    directions = difference_directions(good, bad, orthogonalize=False)
    assert (directions[0] == 0).all()
    expected = functional.normalize((bad - good).double(), dim=-1)[1:].float()
    torch.testing.assert_close(directions[1:], expected)


def test_orthogonalized_directions_have_nothing_along_the_good_mean() -> None:
    good, bad = residuals(1).mean(dim=0), residuals(2).mean(dim=0)
    directions = difference_directions(good, bad, orthogonalize=True)
    along = (directions * functional.normalize(good, dim=-1)).sum(dim=-1)
    assert along.abs().max() < 1e-6
    torch.testing.assert_close(directions[1:].norm(dim=-1), torch.ones(4))


@pytest.mark.parametrize("orthogonalize", [False, True])
def test_rounding_noise_gives_a_zero_direction(orthogonalize: bool) -> None:
    good = residuals(1).mean(dim=0)
    bad = good.clone()
    bad[2] += 1e-6
    bad[3] += torch.linspace(-1, 1, 16)
    directions = difference_directions(good, bad, orthogonalize=orthogonalize)
    assert (directions[[1, 2, 4]] == 0).all()
    assert directions[3].norm() == pytest.approx(1.0)


def test_difference_along_the_good_mean_alone_orthogonalizes_to_zero() -> None:
    good = residuals(1).mean(dim=0)
    directions = difference_directions(good, 1.5 * good, orthogonalize=True)
    assert (directions == 0).all()


def test_geometric_median_resists_an_outlier_and_minimises_distances() -> None:
    data = residuals(3)
    data[0] = 1e4
    median = geometric_median(data)
    assert (median - data[1:].double().mean(dim=0)).abs().max() < 1.0

    def cost(center: torch.Tensor) -> float:
        return float((data.double() - center).norm(dim=-1).sum())

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = torch.randn(median.shape, dtype=torch.float64, generator=generator)
        assert cost(median) <= cost(median + 0.01 * step) + 1e-9


def test_winsorize_clamps_symmetrically_at_the_quantile() -> None:
    data = residuals(4)
    clamped = winsorize(data, 0.75)
    limit = torch.quantile(data.abs(), 0.75, dim=-1, keepdim=True)
    assert (clamped.abs() <= limit + 1e-6).all()
    inside = data.abs() <= limit
    assert torch.equal(clamped[inside], data[inside])
    assert (clamped.sign() == data.sign()).all()
    assert winsorize(data, 1.0) is data


def plan(scope: DirectionScope, index: float | None = None, rank: int = 1) -> Plan:
    return Plan.create(
        direction_scope=scope,
        direction_index=index,
        kernels={},
        row_normalization="none",
        rank=rank,
    )


def bases(layers: int, k: int, hidden: int = 8, seed: int = 9) -> torch.Tensor:
    """Random orthonormal directions, float32 [layers + 1, k, hidden]."""
    square = torch.randn(layers + 1, hidden, hidden, generator=torch.Generator().manual_seed(seed))
    rows: torch.Tensor = torch.linalg.qr(square).Q[:, :k].contiguous()
    return rows


def assert_orthonormal(rows: torch.Tensor) -> None:
    torch.testing.assert_close(
        rows @ rows.mT,
        torch.eye(rows.shape[-2]).to(rows).expand_as(rows @ rows.mT),
        rtol=0,
        atol=1e-6,
    )


class TestScopes:
    """Which direction a layer gets; `direction_index` counts layers, so index i reads row i + 1."""

    directions = functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(9)))

    def direction(self, layer: int, scope: DirectionScope, index: float | None) -> torch.Tensor:
        """The one direction of a layer, the same in the form [..., hidden] and [..., 1, hidden]."""
        basis = layer_basis(self.directions, layer, plan(scope, index))
        assert basis.shape == (1, 8)
        assert torch.equal(
            basis, layer_basis(self.directions.unsqueeze(1), layer, plan(scope, index))
        )
        return basis[0]

    def test_per_layer(self) -> None:
        for layer in range(4):
            chosen = self.direction(layer, "per layer", None)
            assert torch.equal(chosen, self.directions[layer + 1])

    def test_global_at_whole_and_fractional_indices(self) -> None:
        whole = self.direction(0, "global", 2.0)
        torch.testing.assert_close(whole, self.directions[3])
        mixed = self.direction(0, "global", 1.25)
        expected = functional.normalize(
            0.75 * self.directions[2] + 0.25 * self.directions[3], dim=0
        )
        torch.testing.assert_close(mixed, expected)

    @pytest.mark.parametrize(("index", "row"), [(-1.0, 1), (3.0, 4), (3.5, 4), (99.0, 4)])
    def test_global_is_clamped_at_the_ends(self, index: float, row: int) -> None:
        chosen = self.direction(0, "global", index)
        torch.testing.assert_close(chosen, self.directions[row])

    def test_mean_leaves_row_0_out(self) -> None:
        chosen = self.direction(2, "mean", None)
        expected = functional.normalize(self.directions[1:].mean(dim=0), dim=0)
        torch.testing.assert_close(chosen, expected)

    def test_global_needs_an_index(self) -> None:
        with pytest.raises(ValueError, match="direction_index"):
            plan("global")

    @pytest.mark.parametrize(
        ("scope", "index"), [("per layer", None), ("mean", None), ("global", 1.25)]
    )
    def test_no_direction_stays_none(self, scope: DirectionScope, index: float | None) -> None:
        nothing = torch.zeros(5, 2, 8)
        assert (layer_basis(nothing, 1, plan(scope, index, 2)) == 0).all()


class TestRank:
    """The first so many directions of each layer, mixed as the scope says and orthonormal."""

    scopes = pytest.mark.parametrize(
        ("scope", "index"),
        [("per layer", None), ("mean", None), ("global", 2.0), ("global", 1.25), ("global", 99.0)],
    )

    @scopes
    @pytest.mark.parametrize("rank", [1, 2, 3])
    def test_bases_are_orthonormal(
        self, scope: DirectionScope, index: float | None, rank: int
    ) -> None:
        directions = bases(4, 3)
        for layer in range(4):
            basis = layer_basis(directions, layer, plan(scope, index, rank))
            assert basis.shape == (rank, 8)
            assert basis.dtype == directions.dtype
            assert_orthonormal(basis)
            # a smaller rank takes the first of them
            whole = layer_basis(directions, layer, plan(scope, index, 3))
            torch.testing.assert_close(basis, whole[:rank])

    @scopes
    def test_they_span_the_mixed_directions(
        self, scope: DirectionScope, index: float | None
    ) -> None:
        directions = bases(4, 2)
        layers = directions[1:]
        mixed = {
            ("per layer", None): layers[3],
            ("mean", None): layers.mean(dim=0),
            ("global", 2.0): layers[2],
            ("global", 1.25): 0.75 * layers[1] + 0.25 * layers[2],
            ("global", 99.0): layers[3],
        }[scope, index]
        basis = layer_basis(directions, 3, plan(scope, index, 2))
        torch.testing.assert_close(mixed @ basis.T @ basis, mixed, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(basis[0], functional.normalize(mixed[0], dim=0))

    @scopes
    def test_more_than_there_are_is_an_error(
        self, scope: DirectionScope, index: float | None
    ) -> None:
        with pytest.raises(ValueError, match=r"plan of rank 3 .* not 2"):
            layer_basis(bases(4, 2), 0, plan(scope, index, 3))
        with pytest.raises(ValueError, match=r"plan of rank 2 .* not 1"):
            layer_basis(bases(4, 2)[:, 0], 0, plan(scope, index, 2))


class TestOrthonormal:
    def test_rows_in_order(self) -> None:
        vectors = residuals(5)[:3, 0].double()
        rows = orthonormal(vectors)
        assert_orthonormal(rows)
        torch.testing.assert_close(rows[0], functional.normalize(vectors[0], dim=0))
        for count in (1, 2, 3):  # the first so many span the same as those given
            span = rows[:count]
            torch.testing.assert_close(vectors[:count] @ span.T @ span, vectors[:count])

    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    def test_dependent_rows_become_zero(self, scale: float) -> None:
        first, second, third = scale * residuals(6)[:3, 0]
        zero = torch.zeros_like(first)
        rows = orthonormal(
            torch.stack([first, -2 * first, second, zero, first + 3 * second, third])
        )
        assert (rows[[1, 3, 4]] == 0).all()
        assert_orthonormal(rows[[0, 2, 5]])

    def test_orthonormal_rows_stay(self) -> None:
        rows = bases(0, 4)[0]
        torch.testing.assert_close(orthonormal(rows), rows)


class TestSparing:
    def test_a_direction_loses_what_it_shares_with_a_protected_one(self) -> None:
        generator = torch.Generator().manual_seed(4)
        bad, protected = functional.normalize(torch.randn(2, 5, 7, generator=generator), dim=-1)
        bad[0] = protected[0] = 0.0  # the embeddings
        bad[1] = protected[1]  # nothing of its own
        protected[2] = 0.0  # nothing to spare
        found = sparing_directions(bad, protected)
        assert found.dtype == torch.float32
        assert not found[0].any()
        assert not found[1, 0].any()
        torch.testing.assert_close(found[2], torch.stack([bad[2], torch.zeros(7)]))
        torch.testing.assert_close(found[1:, 1], protected[1:])
        assert_orthonormal(found[3:])
        for own, first, spared in zip(found[3:, 0], bad[3:], protected[3:], strict=True):
            rest = first - (first @ spared) * spared
            torch.testing.assert_close(own, functional.normalize(rest, dim=0))


class TestClusterBasis:
    """Bad prompts differ from good ones by a direction, and from each other along planted axes."""

    layers, hidden = 4, 16

    def planted(
        self, *groups: dict[int, float], size: int = 10, noise: float = 0.05
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Directions, good centres and bad residuals of groups that lie at offsets along axes.

        In layer l everything is shifted by l axes, so that layers have nothing in common.
        """
        generator = torch.Generator().manual_seed(0)
        good = torch.randn(self.layers + 1, self.hidden, generator=generator)
        bad = good.repeat(size * len(groups), 1, 1)
        bad += noise * torch.randn(bad.shape, generator=generator)
        for layer in range(self.layers + 1):
            bad[:, layer, layer] += 5.0
            for number, offsets in enumerate(groups):
                for axis, offset in offsets.items():
                    bad[number * size : (number + 1) * size, layer, layer + axis] += offset
        bad[:, 0] = good[0]  # as templates leave it: no difference at the last position
        directions = difference_directions(good, bad.mean(dim=0), orthogonalize=False)
        return directions, good, bad

    @pytest.mark.parametrize("rank", [1, 2, 3])
    def test_the_direction_comes_first_and_all_are_orthonormal(self, rank: int) -> None:
        directions, good, bad = self.planted({1: 2.0}, {1: -2.0}, {2: 3.0})
        basis = cluster_basis(directions, good, bad, rank=rank, orthogonalize=False, seed=1)
        assert basis.shape == (self.layers + 1, rank, self.hidden)
        assert basis.dtype == torch.float32
        torch.testing.assert_close(basis[:, 0], directions)
        assert_orthonormal(basis[1:])
        assert (basis[0] == 0).all()

    def test_what_is_known_besides_is_kept(self) -> None:
        directions, good, bad = self.planted({1: 2.0, 2: 1.0}, {1: -2.0, 2: -1.0})
        protected = torch.zeros_like(directions)
        for layer in range(1, self.layers + 1):
            protected[layer, layer + 1] = 1.0
        known = sparing_directions(directions, protected)
        basis = cluster_basis(known, good, bad, rank=3, orthogonalize=False, seed=1)
        torch.testing.assert_close(basis[:, :2], known)
        for layer in range(1, self.layers + 1):
            assert abs(basis[layer, 2, layer + 2]) > 0.99

    def test_groups_are_found(self) -> None:
        directions, good, bad = self.planted({1: 2.0}, {1: -2.0})
        mixed = bad[torch.randperm(len(bad), generator=torch.Generator().manual_seed(2))]
        basis = cluster_basis(directions, good, mixed, rank=2, orthogonalize=False, seed=1)
        for layer in range(1, self.layers + 1):
            assert basis[layer, 0, layer] > 0.99
            assert abs(basis[layer, 1, layer + 1]) > 0.99

    def test_what_the_direction_leaves_out_is_no_further_one(self) -> None:
        """What all groups share differs from the direction if that is orthogonalized."""
        _, good, bad = self.planted({1: 2.0}, {1: -2.0})
        bad[:, 1:] += 6.0 * functional.normalize(good[1:], dim=-1)
        orthogonal = difference_directions(good, bad.mean(dim=0), orthogonalize=True)
        basis = cluster_basis(orthogonal, good, bad, rank=2, orthogonalize=True, seed=1)
        for layer in range(1, self.layers + 1):
            axis = functional.normalize(good[layer], dim=0)
            assert abs(basis[layer, 1] @ axis) < 1e-5
            assert abs(basis[layer, 1, layer + 1]) > 0.7

    def test_the_largest_difference_comes_first(self) -> None:
        directions, good, bad = self.planted(
            {1: 3.0, 2: 1.5}, {1: 3.0, 2: -1.5}, {1: -3.0, 2: 1.5}, {1: -3.0, 2: -1.5}
        )
        basis = cluster_basis(directions, good, bad, rank=4, orthogonalize=False, seed=3)
        for layer in range(1, self.layers + 1):
            assert abs(basis[layer, 1, layer + 1]) > 0.99
            assert abs(basis[layer, 2, layer + 2]) > 0.99

    def test_neighbouring_layers_agree_in_sign(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A singular vector has no sign of its own; opposite ones would cancel when mixed."""
        axis = functional.normalize(torch.linspace(-1, 1, self.hidden), dim=0)
        directions, good, bad = self.planted({}, {})
        bad[:10, 1:] += 3.0 * axis
        bad[10:, 1:] -= 3.0 * axis
        svd, calls = torch.linalg.svd, itertools.count()

        def turning(*args: Any, **kwargs: Any) -> Any:
            left, sizes, right = svd(*args, **kwargs)
            sign = (-1) ** next(calls)
            return sign * left, sizes, sign * right

        monkeypatch.setattr(torch.linalg, "svd", turning)
        basis = cluster_basis(directions, good, bad, rank=2, orthogonalize=False, seed=1)
        further = basis[1:, 1]
        assert ((further[1:] * further[:-1]).sum(dim=-1) > 0.5).all()
        assert abs(float(layer_basis(basis, 0, plan("mean", rank=2))[1] @ axis)) > 0.8

    def test_without_groups_there_is_nothing_further(self) -> None:
        directions, good, bad = self.planted({}, {}, noise=0.0)
        basis = cluster_basis(directions, good, bad, rank=3, orthogonalize=False, seed=1)
        torch.testing.assert_close(basis[:, 0], directions)
        assert (basis[:, 1:] == 0).all()

    def test_fewer_groups_than_asked_for_give_no_noise(
        self, recwarn: pytest.WarningsRecorder
    ) -> None:
        directions, good, bad = self.planted({1: 2.0}, {1: -2.0}, noise=0.0)
        basis = cluster_basis(directions, good, bad, rank=4, orthogonalize=False, seed=1)
        assert_orthonormal(basis[1:, :2])
        assert (basis[:, 2:] == 0).all()
        assert not recwarn.list

    def test_a_layer_without_direction_has_none_at_all(self) -> None:
        directions, good, bad = self.planted({1: 2.0}, {1: -2.0})
        directions[3] = 0
        basis = cluster_basis(directions, good, bad, rank=2, orthogonalize=False, seed=1)
        assert (basis[3] == 0).all()
        assert_orthonormal(basis[[1, 2, 4]])

    def test_a_seed_gives_the_same_bits(self) -> None:
        directions, good, bad = self.planted({1: 2.0}, {1: -2.0}, {2: 3.0}, noise=1.0)
        first = cluster_basis(directions, good, bad, rank=3, orthogonalize=False, seed=5)
        torch.manual_seed(77)  # nobody else's state matters
        assert torch.equal(
            first, cluster_basis(directions, good, bad, rank=3, orthogonalize=False, seed=5)
        )
