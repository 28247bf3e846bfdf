"""Vectors of controls: what they keep of the originals, and what they lose."""

from __future__ import annotations

import pytest
import torch
from tests.support import export_case
from torch import Tensor
from torch.nn import functional

from heretic.method.controls import mixed, moved_fit, rotated, rotated_fit
from heretic.method.fits import Fit


def products(vectors: Tensor) -> Tensor:
    """All inner products: norms and angles."""
    rows = vectors.flatten(0, -2).double()
    return rows @ rows.T


@pytest.mark.parametrize(
    "vectors",
    [
        export_case.directions(hidden=64),
        export_case.basis(hidden=64),
        torch.randn(9, 4, generator=torch.Generator().manual_seed(0)),  # more vectors than width
    ],
)
def test_a_rotation_keeps_norms_and_angles(vectors: Tensor) -> None:
    found = rotated(vectors, 1)
    assert (found.shape, found.dtype) == (vectors.shape, vectors.dtype)
    torch.testing.assert_close(products(found), products(vectors), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rotated(vectors, 1), found)
    assert not torch.allclose(rotated(vectors, 2), found, atol=0.1)
    assert not torch.allclose(found, vectors, atol=0.1)


def test_rotations_are_uniform() -> None:
    """A direction turns to every side alike: its mean over many draws is nearly nothing."""
    vector = torch.eye(8)[:1]
    turned = torch.cat([rotated(vector, seed) for seed in range(600)])
    assert turned.mean(dim=0).abs().max() < 4 / (8 * 600) ** 0.5
    torch.testing.assert_close(
        turned.square().mean(dim=0), torch.full((8,), 1 / 8), atol=0.04, rtol=0
    )


@pytest.mark.parametrize(("first", "second"), [(8, 8), (7, 4), (2, 30)])
def test_mixed_sets_hold_as_many_of_each(first: int, second: int) -> None:
    good, bad = [("good", i) for i in range(first)], [("bad", i) for i in range(second)]
    one, other = mixed(good, bad, 3)
    assert sorted(one + other) == sorted(good + bad)
    for kind, count in (("good", first), ("bad", second)):
        assert sum(row[0] == kind for row in one) == count // 2
    assert mixed(good, bad, 3) == (one, other)
    assert mixed(good, bad, 4) != (one, other)


def test_a_rotated_fit_is_another_with_the_same_norms() -> None:
    fit = export_case.fit()
    found = rotated_fit(fit, 5)
    both = torch.stack([fit.write, fit.read]), torch.stack([found.write, found.read])
    torch.testing.assert_close(products(both[1]), products(both[0]), atol=1e-5, rtol=1e-4)
    assert found.digest != fit.digest
    assert rotated_fit(fit, 5).digest == found.digest
    gone = functional.cosine_similarity(fit.read, found.read, dim=-1)[:, 0]
    assert gone.abs().mean() < 0.5


@pytest.mark.parametrize("seed", range(6))
def test_a_moved_fit_has_no_vector_in_its_own_layer(seed: int) -> None:
    write = torch.arange(1.0, 6.0).reshape(1, 1, 5, 1, 1).expand(2, 1, 5, 1, 3).contiguous()
    fit = Fit(("mlp.down_proj",), write, -write)
    found = moved_fit(fit, seed)
    places = found.write[0, 0, :, 0, 0]
    assert sorted(places.tolist()) == [1, 2, 3, 4, 5]
    assert not (places == write[0, 0, :, 0, 0]).any()
    torch.testing.assert_close(found.read, -found.write)  # pairs stay together


def test_one_layer_cannot_be_moved() -> None:
    with pytest.raises(ValueError, match="one layer"):
        moved_fit(Fit(("mlp.down_proj",), torch.ones(1, 1, 1, 1, 3), torch.ones(1, 1, 1, 1, 3)), 0)
