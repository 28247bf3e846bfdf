"""The edit's identities, against the definitions in SPEC section 2."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from heretic.edits import make_edit
from heretic.records import RowNormalization

VARIANTS: tuple[RowNormalization, ...] = ("none", "pre", "full")


def definition(weight: Tensor, v: Tensor, a: float, variant: str) -> Tensor:
    """The edited weight as the specification defines it, row by row."""
    if variant == "none":
        return weight - a * torch.outer(v, v @ weight)
    norms = weight.norm(dim=1, keepdim=True)
    norms = torch.where(norms == 0, 1.0, norms)
    rows = weight / norms
    edited = rows - a * torch.outer(v, v @ rows)
    if variant == "full":
        edited = functional.normalize(edited, dim=1)
    return edited * norms


def case(seed: int, d_out: int = 12, d_in: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_out, d_in, dtype=torch.float64, generator=generator)
    weight *= torch.rand(d_out, 1, dtype=torch.float64, generator=generator) * 5 + 0.05
    direction = functional.normalize(
        torch.randn(d_out, dtype=torch.float64, generator=generator), dim=0
    )
    inputs = torch.randn(3, 4, d_in, dtype=torch.float64, generator=generator)
    return weight, direction, inputs


@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=st.integers(0, 10_000), amount=st.floats(-2.0, 2.0))
def test_edited_weight_is_the_definition(
    variant: RowNormalization, seed: int, amount: float
) -> None:
    weight, v, _ = case(seed)
    edit = make_edit(weight, v, amount, variant)
    torch.testing.assert_close(
        edit.edited_weight(weight), definition(weight, v, amount, variant), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_bias", [False, True])
@given(seed=st.integers(0, 10_000), amount=st.floats(-2.0, 2.0))
def test_output_side_equals_edited_weight(
    variant: RowNormalization, with_bias: bool, seed: int, amount: float
) -> None:
    weight, v, inputs = case(seed)
    bias = torch.linspace(-3, 3, len(v), dtype=torch.float64) if with_bias else None
    edit = make_edit(weight, v, amount, variant)
    hooked = edit.apply(functional.linear(inputs, weight, bias), bias)
    edited = functional.linear(inputs, edit.edited_weight(weight), bias)
    torch.testing.assert_close(hooked, edited, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_low_rank_factors_are_exact(variant: RowNormalization) -> None:
    weight, v, _ = case(1)
    edit = make_edit(weight, v, 1.3, variant)
    factors = edit.low_rank(weight)
    result = weight + factors.b @ factors.a
    if factors.magnitude is not None:
        result = functional.normalize(result, dim=1) * factors.magnitude.unsqueeze(-1)
    assert (factors.magnitude is not None) == (variant == "full")
    torch.testing.assert_close(result, edit.edited_weight(weight), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weight_zero_changes_nothing(variant: RowNormalization) -> None:
    weight, v, _ = case(2)
    torch.testing.assert_close(make_edit(weight, v, 0.0, variant).edited_weight(weight), weight)


def test_none_at_one_removes_the_direction() -> None:
    weight, v, _ = case(3)
    edited = make_edit(weight, v, 1.0, "none").edited_weight(weight)
    assert (v @ edited).abs().max() < 1e-12


def test_full_keeps_row_norms() -> None:
    weight, v, _ = case(4)
    edited = make_edit(weight, v, 1.4, "full").edited_weight(weight)
    torch.testing.assert_close(edited.norm(dim=1), weight.norm(dim=1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_zeros_stay_finite(variant: RowNormalization) -> None:
    weight, v, inputs = case(5)
    weight[3] = 0
    edit = make_edit(weight, v, 1.0, variant)
    edited = edit.edited_weight(weight)
    assert edited.isfinite().all()
    if variant == "full":
        assert (edited[3] == 0).all()
    torch.testing.assert_close(edit.apply(inputs @ weight.T), inputs @ edited.T)


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_is_computed_in_float32(variant: RowNormalization) -> None:
    weight, v, inputs = case(6)
    edit = make_edit(weight.float(), v.float(), 1.2, variant)
    output = (inputs @ weight.T).to(torch.bfloat16)
    expected = edit.apply(output.float()).to(torch.bfloat16)
    assert torch.equal(edit.apply(output), expected)


def test_shapes_are_checked() -> None:
    weight, v, _ = case(7)
    with pytest.raises(ValueError, match="cannot edit"):
        make_edit(weight, v[:-1], 1.0, "none")
