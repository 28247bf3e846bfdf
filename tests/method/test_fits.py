"""Fits: what lies between two points, and files that hold nothing but the fit."""

from __future__ import annotations

import pytest
import torch
from tests.support import export_case
from torch import Tensor

from heretic.method.edits import OutputEdit, Vectors, make_fitted
from heretic.method.fits import Fit
from heretic.records import ATTENTION, MLP, RowNormalization

FIT = export_case.fit()


def test_at_a_point_the_vectors_are_its_own_bit_for_bit() -> None:
    for point in range(FIT.points):
        found = FIT.at(MLP, 2, float(point))
        assert found is not None
        assert torch.equal(found.write, FIT.write[point, 1, 2])
        assert torch.equal(found.read, FIT.read[point, 1, 2])


def test_between_points_write_and_read_vectors_are_mixed_apart_so_the_rank_stays() -> None:
    found = FIT.at(ATTENTION, 1, 0.25)
    assert found is not None
    for part, whole in ((found.write, FIT.write), (found.read, FIT.read)):
        torch.testing.assert_close(part, 0.75 * whole[0, 0, 1] + 0.25 * whole[1, 0, 1])
    change = found.write.T @ found.read
    assert torch.linalg.matrix_rank(change) == FIT.rank


def test_beyond_the_path_its_end_counts() -> None:
    last, beyond = FIT.at(MLP, 1, 1.0), FIT.at(MLP, 1, 7.0)
    assert last is not None
    assert beyond is not None
    assert torch.equal(last.write, beyond.write)


@pytest.mark.parametrize(("component", "layer"), [(MLP, 0), (MLP, 3), ("mixer.out_proj", 1)])
def test_where_nothing_is_fitted_there_is_nothing(component: str, layer: int) -> None:
    assert FIT.at(component, layer, 0.5) is None


def test_what_is_read_back_is_the_same_fit() -> None:
    again = Fit.from_content(FIT.content())
    assert again.digest == FIT.digest
    assert again.components == FIT.components
    assert torch.equal(again.write, FIT.write)
    assert torch.equal(again.read, FIT.read)


def test_the_digest_sees_every_bit_and_every_name() -> None:
    changed = FIT.write.clone()
    changed[1, 1, 2, 0, 5] = torch.nextafter(changed[1, 1, 2, 0, 5], torch.tensor(9.0))
    others = [
        Fit(FIT.components, changed, FIT.read),
        Fit((ATTENTION, "mlp.other"), FIT.write, FIT.read),
        Fit(FIT.components, FIT.read, FIT.write),
        Fit(FIT.components, FIT.write[:1], FIT.read[:1]),
    ]
    assert len({FIT.digest, *(other.digest for other in others)}) == 5


def saved(tensors: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.clone() for name, tensor in tensors.items()})


SMALL = torch.ones(1, 2, 1, 4)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        FIT.content()[:-9],
        saved({"weight": SMALL}),
        saved({"write.mlp": SMALL}),
        saved({"write.mlp": SMALL, "read.mlp": SMALL, "read.other": SMALL}),
        saved({"write.mlp": SMALL, "read.mlp": SMALL[:, :1].contiguous()}),
        saved({"write.mlp": SMALL.half(), "read.mlp": SMALL.half()}),
        saved({"write.mlp": SMALL / 0, "read.mlp": SMALL}),
        saved({"write.mlp": torch.ones(3), "read.mlp": torch.ones(3)}),
        saved({"write.mlp": SMALL[:0], "read.mlp": SMALL[:0]}),
    ],
)
def test_other_content_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Fit.from_content(content)


def edit(weight: Tensor, vectors: Vectors, variant: RowNormalization) -> OutputEdit:
    ablation = make_fitted(weight, vectors, variant)
    return ablation.edit(torch.tensor([0.9, 0.9], dtype=weight.dtype))


class TestEdit:
    """Against the definition: W' = S (I - U^T Q) W."""

    weight = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    vectors = Vectors(*torch.randn(2, 2, 6, dtype=torch.float64, generator=torch.Generator()))

    def wanted(self) -> Tensor:
        change = 0.9 * self.vectors.write.T @ self.vectors.read @ self.weight
        return self.weight - change

    @pytest.mark.parametrize("variant", ["none", "pre"])
    def test_row_norms_are_not_kept(self, variant: RowNormalization) -> None:
        found = edit(self.weight, self.vectors, variant).edited_weight(self.weight)
        torch.testing.assert_close(found, self.wanted())

    def test_row_norms_are_kept(self) -> None:
        found = edit(self.weight, self.vectors, "full").edited_weight(self.weight)
        norms = self.weight.norm(dim=1, keepdim=True)
        wanted = torch.nn.functional.normalize(self.wanted(), dim=1) * norms
        torch.testing.assert_close(found, wanted)

    def test_a_row_of_zeros_stays_one(self) -> None:
        weight = self.weight.clone()
        weight[2] = 0
        found = edit(weight, self.vectors, "full").edited_weight(weight)
        assert not found[2].any()
        assert found.isfinite().all()

    def test_vectors_of_another_width_are_refused(self) -> None:
        with pytest.raises(ValueError, match="cannot edit"):
            make_fitted(self.weight.T, self.vectors, "none")
