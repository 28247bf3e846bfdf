"""The edit of one residual writer, as one object with two faces.

`OutputEdit.apply` acts on the module's output while searching; `OutputEdit.edited_weight` and
`OutputEdit.low_rank` give the weights for export. Both follow from the same three vectors, because
the edit is an exact linear function of the output (SPEC section 2). Directional ablation is due to
Arditi et al. 2024 (arXiv 2406.11717); `full`, the norm-preserving variant, to Jim Lai (2025).

Where row norms differ, `pre` and `full` do not make the result orthogonal to the direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heretic.records import RowNormalization

ROUNDINGS = 8
"""An edited row counts as gone where its squared norm, relative to the row's, is below as many
machine epsilons: what is left is rounding noise, and must not be blown up to the row's norm."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """Adapter factors: W' = W + b a, or magnitude * normalise_rows(W + b a) (DoRA).

    Attributes:
        a: [1, d_in].
        b: [d_out, 1].
        magnitude: [d_out] for DoRA (Liu et al. 2024, arXiv 2402.09353); None for LoRA.
    """

    a: Tensor
    b: Tensor
    magnitude: Tensor | None


@dataclass(frozen=True, slots=True)
class OutputEdit:
    """y' = scale * (y - write (read . y)) on the bias-free output y of a writer.

    Attributes:
        write: weight * (v * n), [d_out].
        read: v / n, [d_out].
        scale: Row factors of `full`, [d_out]; None for `none` and `pre`.
        row_norms: n, [d_out]; ones for `none`.
    """

    write: Tensor
    read: Tensor
    scale: Tensor | None
    row_norms: Tensor

    def apply(self, output: Tensor, bias: Tensor | None = None) -> Tensor:
        """Edit a module's output [..., d_out]; the bias is taken off first and put back after.

        Vectors of shape [rows, d_out] (see `rows`) edit each row of [rows, ..., d_out] in its own
        way. Computed in float32 for half precisions, returned in the output's dtype.
        """
        dtype = torch.promote_types(output.dtype, torch.float32)
        plain = output.to(dtype)
        if bias is not None:
            plain = plain - bias.to(dtype)
        read, write = self._fitting(self.read, plain), self._fitting(self.write, plain)
        if self.read.dim() == 1:
            amount = (plain @ read).unsqueeze(-1)
        else:
            plain = plain.reshape(len(read), -1, plain.shape[-1])
            amount = (plain * read).sum(dim=-1, keepdim=True)
        edited = torch.addcmul(plain, amount, write, value=-1)
        if self.scale is not None:
            edited *= self._fitting(self.scale, plain)
        if bias is not None:
            edited += bias.to(dtype)
        return edited.reshape(output.shape).to(output.dtype)

    @staticmethod
    def _fitting(vector: Tensor, output: Tensor) -> Tensor:
        moved = vector.to(output.device, output.dtype)
        return moved if vector.dim() == 1 else moved.unsqueeze(1)

    def rows(self, index: Tensor) -> OutputEdit:
        """The edits that `index` [rows] picks from stacked ones, with vectors [rows, d_out]."""
        index = index.to(self.read.device)
        scale = None if self.scale is None else self.scale[index]
        return OutputEdit(self.write[index], self.read[index], scale, self.row_norms[index])

    def edited_weight(self, weight: Tensor) -> Tensor:
        """The weight [d_out, d_in] whose plain output is the edited output; same dtype."""
        edited = weight - torch.outer(self.write, self.read @ weight)
        return edited if self.scale is None else edited * self.scale.unsqueeze(-1)

    def low_rank(self, weight: Tensor) -> LowRank:
        """Exact adapter factors of rank 1 for the weight [d_out, d_in]."""
        magnitude = None
        if self.scale is not None:
            # PEFT renormalises rows of W + BA itself: a row that the edit zeroes has magnitude 0.
            magnitude = torch.where(self.scale == 0, 0.0, self.row_norms)
        return LowRank(
            a=(self.read @ weight).unsqueeze(0), b=-self.write.unsqueeze(-1), magnitude=magnitude
        )


def stack(edits: Sequence[OutputEdit | None]) -> OutputEdit:
    """Edits of one writer as one, its vectors [edits, d_out]; None leaves the output alone.

    Raises:
        ValueError: There is no edit among them.
    """
    known = next((edit for edit in edits if edit is not None), None)
    if known is None:
        raise ValueError("no edit to stack")
    zero, one = torch.zeros_like(known.read), torch.ones_like(known.read)
    whole = [edit or OutputEdit(zero, zero, None, one) for edit in edits]
    scaled = any(edit.scale is not None for edit in whole)
    scales = [one if edit.scale is None else edit.scale for edit in whole]
    return OutputEdit(
        write=torch.stack([edit.write for edit in whole]),
        read=torch.stack([edit.read for edit in whole]),
        scale=torch.stack(scales) if scaled else None,
        row_norms=torch.stack([edit.row_norms for edit in whole]),
    )


def row_norms(weight: Tensor) -> Tensor:
    """Euclidean norms of the rows, [d_out]; a row of norm 0 counts as 1."""
    norms = torch.linalg.vector_norm(weight, dim=1)
    return torch.where(norms == 0, 1.0, norms)


def make_edit(
    weight: Tensor,
    direction: Tensor,
    amount: float,
    row_normalization: RowNormalization,
    *,
    norms: Tensor | None = None,
) -> OutputEdit:
    """Derive the edit of a writer.

    Args:
        weight: W, [d_out, d_in], float32 or float64.
        direction: Unit vector v in the residual space, [d_out].
        amount: The ablation weight a; 1.0 removes the direction, 0.0 changes nothing.
        row_normalization: The variant. With `full`, rows of norm 0 stay 0.
        norms: `row_norms(weight)`, if already known.

    Raises:
        ValueError: Shapes do not fit.
    """
    if direction.shape != weight.shape[:1]:
        raise ValueError(
            f"a direction of shape {tuple(direction.shape)} cannot edit a weight of shape "
            f"{tuple(weight.shape)}"
        )
    v = direction.to(weight.device, weight.dtype)
    if row_normalization == "none":
        return OutputEdit(write=amount * v, read=v, scale=None, row_norms=torch.ones_like(v))
    n = row_norms(weight) if norms is None else norms.to(weight.device, weight.dtype)
    edit = OutputEdit(write=amount * v * n, read=v / n, scale=None, row_norms=n)
    if row_normalization == "pre":
        return edit
    return OutputEdit(
        write=edit.write, read=edit.read, scale=_row_scale(weight, v, n, amount), row_norms=n
    )


def _row_scale(weight: Tensor, v: Tensor, n: Tensor, amount: float) -> Tensor:
    """s_i = |w_i| / |w_i - a v_i p| on normalised rows w_i, with p = v^T W^, [d_out]."""
    p = (v / n) @ weight
    g = (weight @ p) / n
    squared = 1.0 - 2.0 * amount * v * g + (amount * v) ** 2 * (p @ p)
    # A row of zeros has g = 0 and would be filled with -a v_i p: keep it, and its norm, at zero.
    empty = ~weight.any(dim=1)
    smallest = ROUNDINGS * torch.finfo(weight.dtype).eps
    return torch.where((squared < smallest) | empty, 0.0, squared.clamp_min(smallest).rsqrt())
