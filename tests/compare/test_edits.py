"""The kind, rank and directions of an edit are found from the matrix before and after."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from heretic.compare.difference import overlap
from heretic.compare.edits import compared, has_rank, reads_output
from heretic.compare.levels import bits
from heretic.compare.rank import EXACT, SKETCHES, spectrum
from heretic.method.edits import Vectors, make_ablation, make_fitted
from heretic.records import RowNormalization

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((32, 32), (48, 32), (32, 48), (300, 700))
"""Small ones, whose singular values are computed exactly, and one that is sketched."""

Maker = Callable[[torch.dtype], Tensor]


def weight(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Normally distributed, with rows of different norms."""
    generator = torch.Generator().manual_seed(seed)
    scale = 1 + torch.rand(shape[0], 1, generator=generator)
    return torch.randn(*shape, generator=generator) * scale / 30


def basis(width: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    columns: Tensor = torch.linalg.qr(torch.randn(width, rank, generator=generator)).Q
    return columns.T


def ablated(old: Tensor, rank: int, amount: float, variant: RowNormalization) -> Tensor:
    ablation = make_ablation(old.float(), basis(len(old), rank), variant)
    return ablation.edit(torch.full((rank,), amount)).edited_weight(old.float()).to(old.dtype)


def fitted(old: Tensor, variant: RowNormalization) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    write, read = (torch.randn(2, len(old), generator=generator) / 4 for _ in range(2))
    edit = make_fitted(old.float(), Vectors(write, read), variant).edit(torch.ones(2))
    return edit.edited_weight(old.float()).to(old.dtype)


def noisy(old: Tensor, rank: int | None = None, size: float = 0.005) -> Tensor:
    """With a random matrix added, of that rank or of full rank."""
    generator = torch.Generator().manual_seed(3)
    rows, columns = old.shape
    if rank is None:
        added = torch.randn(rows, columns, generator=generator)
    else:
        added = torch.randn(rows, rank, generator=generator) @ torch.randn(
            rank, columns, generator=generator
        )
    return (old.float() + size * added).to(old.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", ["none", "pre", "full"])
@pytest.mark.parametrize(("rank", "amount"), [(1, 1.0), (1, 0.15), (2, 0.8)])
def test_ablations_are_recognised(
    shape: tuple[int, int],
    dtype: torch.dtype,
    variant: RowNormalization,
    rank: int,
    amount: float,
) -> None:
    old = weight(shape).to(dtype)
    new = ablated(old, rank, amount, variant)
    for transposed in (False, True):  # Conv1D of GPT-2 stores [d_in, d_out]
        found = compared(old.T, new.T) if transposed else compared(old, new)
        assert (found.kind, found.rank, found.more) == ("ablation", rank, False)
        assert found.norms_kept == (variant == "full" and (not transposed or found.scaled))
        assert found.left is not None
        assert overlap(found.left, basis(shape[0], rank).T) > 0.95


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_other_edits_of_low_rank_are_no_ablations(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    old = weight(shape).to(dtype)
    for new, rank in (
        (fitted(old, "none"), 2),
        (fitted(old, "full"), 2),
        (noisy(old, 1), 1),
        (noisy(old, 4), 4),
    ):
        found = compared(old, new)
        assert (found.kind, found.rank, found.more) == ("low_rank", rank, False)
    assert compared(old, fitted(old, "full")).norms_kept
    assert not compared(old, fitted(old, "none")).norms_kept


def test_what_an_edit_reads_tells_fits_from_adapters() -> None:
    wide, tall = weight((32, 48)), weight((48, 32))
    assert reads_output(wide, fitted(wide, "none")) is True
    assert reads_output(wide, noisy(wide, 2)) is False
    assert reads_output(wide.T, fitted(wide, "none").T) is True  # stored as [d_in, d_out]
    assert reads_output(tall, fitted(tall, "none")) is None  # a tall matrix cannot tell
    square = weight((32, 32))
    assert reads_output(square, noisy(square, 2)) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_training_has_full_rank(shape: tuple[int, int], dtype: torch.dtype) -> None:
    old = weight(shape).to(dtype)
    found = compared(old, noisy(old))
    assert found.kind == "full_rank"
    assert found.rank >= min(*shape, SKETCHES[-1]) * 3 // 4
    assert found.more == (min(shape) > EXACT)
    assert found.change == pytest.approx(float((noisy(old).float() - old.float()).norm()))


def test_dtypes_alone_are_no_edit() -> None:
    old = weight((32, 48))
    for dtype in DTYPES[1:]:
        assert compared(old, old.to(dtype)).kind == "rounding"
        assert compared(old.to(dtype), old.to(dtype).float()).kind == "rounding"
    assert compared(old, old.clone()).kind == "identical"


def test_an_edit_of_the_unrounded_original_is_found() -> None:
    """Where the original's file was rounded and the edited one's was not."""
    old = weight((64, 96))
    found = compared(old.bfloat16(), ablated(old, 1, 1.0, "none"))
    assert (found.kind, found.rank) == ("ablation", 1)


def test_numbers_that_are_not_finite() -> None:
    old = weight((32, 32))
    new = old.clone()
    new[3, 4] = torch.nan
    assert compared(old, new).kind == "not_finite"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["none", "pre", "full"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_known_rank_is_confirmed(
    shape: tuple[int, int], dtype: torch.dtype, variant: RowNormalization
) -> None:
    old = weight(shape).to(dtype)
    scaled = variant == "full"
    new = ablated(old, 1, 0.7, variant)
    assert has_rank(old, new, 1, scaled=scaled, transposed=False)
    assert has_rank(old.T, new.T, 1, scaled=scaled, transposed=True)
    for wrong in (ablated(old, 2, 0.7, variant), noisy(new), noisy(new, 1)):
        assert not has_rank(old, wrong, 1, scaled=scaled, transposed=False)


def test_one_altered_row_is_more_than_the_rank() -> None:
    old = weight((32, 48))
    new = ablated(old, 1, 0.7, "none")
    new[5] += 0.01
    assert not has_rank(old, new, 1, scaled=False, transposed=False)


def test_rounding_is_no_rank() -> None:
    matrix = weight((300, 700))
    rounded = matrix.bfloat16().float() - matrix
    noise = float(rounded.std())
    assert spectrum(rounded, noise).rank == 0
    assert spectrum(rounded, 0.0).rank > 0


def test_levels_of_quantised_weights() -> None:
    old = weight((32, 2048))
    blocks = old.view(32, -1, 64)
    scale = blocks.abs().amax(dim=-1, keepdim=True)
    four = ((blocks / scale * 7).round() / 7 * scale).view(32, -1)
    eight = (old / old.abs().amax(dim=1, keepdim=True) * 127).round()
    assert [bits(matrix) for matrix in (old, old.bfloat16(), four, eight)] == [None, None, 4, 8]
