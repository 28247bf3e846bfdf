"""The edit's identities, against the definitions in docs/how-it-works.md."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from heretic.method.edits import OutputEdit, make_ablation, row_norms, stack
from heretic.records import RowNormalization

VARIANTS: tuple[RowNormalization, ...] = ("none", "pre", "full")


def make_edit(
    weight: Tensor,
    direction: Tensor,
    amount: float,
    row_normalization: RowNormalization,
    *,
    norms: Tensor | None = None,
) -> OutputEdit:
    """The edit of a writer along one direction [d_out], or orthonormal ones [k, d_out].

    Args:
        amount: The ablation weight a; 1.0 removes the direction, 0.0 changes nothing.

    See `make_ablation` for the other arguments and errors.
    """
    directions = direction.unsqueeze(0) if direction.dim() == 1 else direction
    ablation = make_ablation(weight, directions, row_normalization, norms=norms)
    return ablation.edit(ablation.directions.new_full((len(directions),), amount))


def definition(weight: Tensor, v: Tensor, a: float, variant: str) -> Tensor:
    """The edited weight as docs/how-it-works.md defines it, row by row."""
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


def definition_row_by_row(weight: Tensor, v: Tensor, a: Tensor, variant: str) -> Tensor:
    """The edited weight along directions v [k, d_out] with weights a [k], each row on its own."""
    norms = weight.norm(dim=1) if variant != "none" else torch.ones(len(weight)).to(weight)
    rows = weight / norms.unsqueeze(-1)
    edited = []
    for i, row in enumerate(rows):
        removed = sum((a[j] * v[j, i] * (v[j] @ rows) for j in range(len(v))), torch.zeros(()))
        rest = row - removed
        if variant == "full":
            rest = rest / rest.norm()
        edited.append(norms[i] * rest)
    return torch.stack(edited)


def basis(seed: int, k: int, d_out: int = 12) -> Tensor:
    """Random orthonormal directions, float64 [k, d_out]."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(d_out, d_out, dtype=torch.float64, generator=generator)
    rows: Tensor = torch.linalg.qr(square).Q[:k].contiguous()
    return rows


def some_weights(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=torch.float64, generator=generator) * 3 - 1


def edit_of(
    weight: Tensor, v: Tensor, ablation_weights: Tensor, variant: RowNormalization
) -> OutputEdit:
    return make_ablation(weight, v, variant).edit(ablation_weights)


def assert_same(left: OutputEdit, right: OutputEdit) -> None:
    """The same edit in all its parts."""
    for name in ("write", "read", "scale", "row_norms"):
        one, other = getattr(left, name), getattr(right, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
class TestRank:
    """Edits along several orthonormal directions at once."""

    @given(seed=st.integers(0, 10_000), k=st.integers(1, 5))
    def test_edited_weight_is_the_definition(
        self, variant: RowNormalization, seed: int, k: int
    ) -> None:
        weight, _, _ = case(seed)
        v, ablation_weights = basis(seed, k), some_weights(seed, k)
        edited = edit_of(weight, v, ablation_weights, variant).edited_weight(weight)
        expected = definition_row_by_row(weight, v, ablation_weights, variant)
        torch.testing.assert_close(edited, expected, rtol=1e-9, atol=1e-10)

    @pytest.mark.parametrize("with_bias", [False, True])
    @given(seed=st.integers(0, 10_000), k=st.integers(1, 5))
    def test_output_side_equals_edited_weight(
        self, variant: RowNormalization, with_bias: bool, seed: int, k: int
    ) -> None:
        weight, _, inputs = case(seed)
        bias = torch.linspace(-3, 3, 12, dtype=torch.float64) if with_bias else None
        edit = edit_of(weight, basis(seed, k), some_weights(seed, k), variant)
        hooked = edit.apply(functional.linear(inputs, weight, bias), bias)
        edited = functional.linear(inputs, edit.edited_weight(weight), bias)
        torch.testing.assert_close(hooked, edited, rtol=1e-9, atol=1e-9)

    def test_low_rank_factors_are_exact(self, variant: RowNormalization) -> None:
        weight, _, _ = case(1)
        edit = edit_of(weight, basis(1, 3), some_weights(1, 3), variant)
        factors = edit.low_rank(weight)
        assert (factors.a.shape, factors.b.shape) == ((3, 20), (12, 3))
        result = weight + factors.b @ factors.a
        if factors.magnitude is not None:
            result = functional.normalize(result, dim=1) * factors.magnitude.unsqueeze(-1)
        torch.testing.assert_close(result, edit.edited_weight(weight), rtol=1e-12, atol=1e-12)

    def test_rank_1_is_the_edit_along_a_single_direction(self, variant: RowNormalization) -> None:
        weight, v, inputs = case(8)
        edit = edit_of(weight, v.unsqueeze(0), torch.tensor([1.3], dtype=torch.float64), variant)
        assert_same(edit, make_edit(weight, v, 1.3, variant))
        n = row_norms(weight) if variant != "none" else torch.ones_like(v)
        output = inputs @ weight.T
        expected = output - ((output @ (v / n)).unsqueeze(-1) * (1.3 * v * n))
        if variant == "full":
            unscaled = weight - torch.outer(1.3 * v * n, (v / n) @ weight)
            expected = expected * (weight.norm(dim=1) / unscaled.norm(dim=1))
        torch.testing.assert_close(edit.apply(output), expected, rtol=1e-11, atol=1e-11)

    def test_one_amount_for_several_directions(self, variant: RowNormalization) -> None:
        weight, _, _ = case(9)
        v = basis(9, 3)
        same = torch.full((3,), 0.7, dtype=torch.float64)
        assert_same(make_edit(weight, v, 0.7, variant), edit_of(weight, v, same, variant))

    def test_a_direction_without_weight_is_left_alone(self, variant: RowNormalization) -> None:
        weight, _, _ = case(10)
        v, ablation_weights = basis(10, 3), torch.tensor([0.8, 0.0, -0.4], dtype=torch.float64)
        expected = edit_of(weight, v[[0, 2]], ablation_weights[[0, 2]], variant).edited_weight(
            weight
        )
        edited = edit_of(weight, v, ablation_weights, variant).edited_weight(weight)
        torch.testing.assert_close(edited, expected, rtol=1e-12, atol=1e-12)
        v = v.clone()
        v[1] = 0  # nor is there anything to remove where there is no direction
        ablation_weights = torch.tensor([0.8, 2.0, -0.4], dtype=torch.float64)
        edited = edit_of(weight, v, ablation_weights, variant).edited_weight(weight)
        torch.testing.assert_close(edited, expected, rtol=1e-12, atol=1e-12)

    def test_signs_of_directions_are_no_matter(self, variant: RowNormalization) -> None:
        weight, _, _ = case(11)
        v, ablation_weights = basis(11, 3), some_weights(11, 3)
        expected = edit_of(weight, v, ablation_weights, variant).edited_weight(weight)
        for signs in itertools.product((1.0, -1.0), repeat=3):
            turned = v * torch.tensor(signs, dtype=torch.float64).unsqueeze(-1)
            edited = edit_of(weight, turned, ablation_weights, variant).edited_weight(weight)
            torch.testing.assert_close(edited, expected, rtol=1e-12, atol=1e-12)

    def test_equal_weights_remove_a_span_whatever_its_axes(self, variant: RowNormalization) -> None:
        """Sum_j v_j v_j^T is the projection onto the span; unequal weights tell the axes apart."""
        weight, _, _ = case(12)
        v = basis(12, 3)
        turned = basis(13, 3, d_out=3) @ v
        equal = torch.full((3,), 0.9, dtype=torch.float64)
        expected = edit_of(weight, v, equal, variant).edited_weight(weight)
        edited = edit_of(weight, turned, equal, variant).edited_weight(weight)
        torch.testing.assert_close(edited, expected, rtol=1e-11, atol=1e-11)
        unequal = torch.tensor([0.9, 0.2, -0.5], dtype=torch.float64)
        differing = edit_of(weight, turned, unequal, variant).edited_weight(weight)
        assert (differing - edit_of(weight, v, unequal, variant).edited_weight(weight)).norm() > 0.1

    def test_rows_of_zeros_stay_finite(self, variant: RowNormalization) -> None:
        weight, _, inputs = case(5)
        weight[3] = 0
        edit = edit_of(weight, basis(5, 2), some_weights(5, 2), variant)
        edited = edit.edited_weight(weight)
        assert edited.isfinite().all()
        if variant == "full":
            assert (edited[3] == 0).all()
        torch.testing.assert_close(edit.apply(inputs @ weight.T), inputs @ edited.T)


@pytest.mark.parametrize("variant", VARIANTS)
class TestMany:
    """Several edits of one writer as one, each for rows of its own."""

    def test_weights_row_by_row_are_edits_row_by_row(self, variant: RowNormalization) -> None:
        weight, _, inputs = case(20)
        ablation = make_ablation(weight, basis(20, 2), variant)
        ablation_weights = some_weights(20, 3, 2)
        together = ablation.edit(ablation_weights)
        alone = [ablation.edit(row) for row in ablation_weights]
        assert_same(together, stack(alone))
        output = inputs @ weight.T + 1.5
        bias = torch.full((12,), 1.5, dtype=torch.float64)
        expected = torch.stack(
            [edit.apply(row, bias) for edit, row in zip(alone, output, strict=True)]
        )
        edited = together.apply(output, bias)
        torch.testing.assert_close(edited, expected, rtol=1e-12, atol=1e-12)

    def test_stacked_edits_may_differ_in_rank(self, variant: RowNormalization) -> None:
        weight, _, inputs = case(21)
        edits = [
            edit_of(weight, basis(21, 1), some_weights(21, 1), variant),
            None,
            edit_of(weight, basis(22, 3), some_weights(22, 3), variant),
            edit_of(weight, basis(23, 2), some_weights(23, 2), "none"),
        ]
        stacked = stack(edits)
        assert stacked.read.shape == stacked.write.shape == (4, 3, 12)
        index = [2, 0, 3, 1, 2]
        output = torch.cat([inputs, inputs[:2] + 1]) @ weight.T
        edited = stacked.rows(torch.tensor(index)).apply(output)
        for row, picked in enumerate(index):
            edit = edits[picked]
            expected = output[row] if edit is None else edit.apply(output[row])
            torch.testing.assert_close(edited[row], expected, rtol=1e-12, atol=1e-12)

    def test_one_vector_per_row(self, variant: RowNormalization) -> None:
        weight, _, inputs = case(24)
        ablation_weights = some_weights(24, 3, 2)
        edit = edit_of(weight, basis(24, 2), ablation_weights, variant)
        output = inputs @ weight.T
        torch.testing.assert_close(edit.apply(output[:, 0]), edit.apply(output)[:, 0])


def test_nothing_is_no_stack() -> None:
    with pytest.raises(ValueError, match="no edit"):
        stack([None, None])


@pytest.mark.parametrize("variant", VARIANTS)
class TestGradients:
    """An edit is differentiable in its weights, and in the output that it edits."""

    @pytest.mark.parametrize("shape", [(1,), (2,), (3, 1), (3, 2)])
    @pytest.mark.parametrize("empty_row", [False, True])
    def test_equal_finite_differences(
        self, variant: RowNormalization, shape: tuple[int, ...], empty_row: bool
    ) -> None:
        weight, _, inputs = case(30)
        if empty_row:
            weight[4] = 0
        ablation = make_ablation(weight, basis(30, shape[-1]), variant)
        bias = torch.linspace(-1, 1, 12, dtype=torch.float64)

        def edited(ablation_weights: Tensor, output: Tensor) -> Tensor:
            return ablation.edit(ablation_weights).apply(output, bias).sin().sum()

        ablation_weights = some_weights(31, *shape).requires_grad_()
        output = (inputs @ weight.T + bias).requires_grad_()
        assert torch.autograd.gradcheck(edited, (ablation_weights, output))

    def test_one_backward_pass_gives_every_row_its_own(self, variant: RowNormalization) -> None:
        weight, _, inputs = case(32)
        ablation = make_ablation(weight, basis(32, 2), variant)
        output = inputs @ weight.T
        together = some_weights(33, 3, 2).requires_grad_()
        ablation.edit(together).apply(output).square().sum().backward()
        assert together.grad is not None
        for row in range(3):
            alone = together.detach()[row].clone().requires_grad_()
            ablation.edit(alone).apply(output[row]).square().sum().backward()
            assert alone.grad is not None
            torch.testing.assert_close(together.grad[row], alone.grad, rtol=1e-10, atol=1e-10)

    def test_half_precision_outputs_give_gradients_in_float32(
        self, variant: RowNormalization
    ) -> None:
        weight, _, inputs = case(34)
        ablation = make_ablation(weight.float(), basis(34, 2).float(), variant)
        ablation_weights = some_weights(34, 2).float().requires_grad_()
        ablation.edit(ablation_weights).apply(
            (inputs @ weight.T).to(torch.bfloat16)
        ).sum().backward()
        assert ablation_weights.grad is not None
        assert ablation_weights.grad.dtype == torch.float32
        assert ablation_weights.grad.isfinite().all()


def test_gradients_are_finite_where_a_row_is_gone() -> None:
    """At 1 a row of the weight that is the direction's share alone is removed in whole."""
    weight = torch.zeros(3, 4, dtype=torch.float64)
    weight[0], weight[1] = torch.arange(1.0, 5.0), torch.tensor([1.0, -1.0, 1.0, -1.0])
    ablation_weights = torch.ones(1, dtype=torch.float64, requires_grad=True)
    axis = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    edit = make_ablation(weight, axis, "full").edit(ablation_weights)
    assert edit.scale is not None
    assert edit.scale.tolist() == [0.0, 1.0, 0.0]
    edit.apply(torch.ones(2, 3, dtype=torch.float64)).sum().backward()
    assert ablation_weights.grad is not None
    assert ablation_weights.grad.isfinite().all()


def test_shapes_of_several_directions_are_checked() -> None:
    weight, _, _ = case(7)
    for directions in (basis(7, 2)[:, :-1], basis(7, 2).unsqueeze(0), basis(7, 1)[0]):
        with pytest.raises(ValueError, match="cannot edit"):
            make_ablation(weight, directions, "none")
