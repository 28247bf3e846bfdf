"""Residuals to directions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from heretic.directions import (
    RunningMean,
    difference_directions,
    geometric_median,
    layer_direction,
    winsorize,
)


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


class TestScopes:
    """Which direction a layer gets; `direction_index` counts layers, so index i reads row i + 1."""

    directions = functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(9)))

    def test_per_layer(self) -> None:
        for layer in range(4):
            chosen = layer_direction(self.directions, layer, "per layer", None)
            assert torch.equal(chosen, self.directions[layer + 1])

    def test_global_at_whole_and_fractional_indices(self) -> None:
        whole = layer_direction(self.directions, 0, "global", 2.0)
        torch.testing.assert_close(whole, self.directions[3])
        mixed = layer_direction(self.directions, 0, "global", 1.25)
        expected = functional.normalize(
            0.75 * self.directions[2] + 0.25 * self.directions[3], dim=0
        )
        torch.testing.assert_close(mixed, expected)

    @pytest.mark.parametrize(("index", "row"), [(-1.0, 1), (3.0, 4), (3.5, 4), (99.0, 4)])
    def test_global_is_clamped_at_the_ends(self, index: float, row: int) -> None:
        chosen = layer_direction(self.directions, 0, "global", index)
        torch.testing.assert_close(chosen, self.directions[row])

    def test_mean_leaves_row_0_out(self) -> None:
        chosen = layer_direction(self.directions, 2, "mean", None)
        expected = functional.normalize(self.directions[1:].mean(dim=0), dim=0)
        torch.testing.assert_close(chosen, expected)

    def test_global_needs_an_index(self) -> None:
        with pytest.raises(ValueError, match="direction index"):
            layer_direction(self.directions, 0, "global", None)
