"""The edit of one residual writer, on its output or in its weight.

`OutputEdit.apply` edits the module's output while searching; `OutputEdit.edited_weight` and
`OutputEdit.low_rank` give the weights for export. Both follow from the same vectors, because the
edit is an exact linear function of the output (docs/how-it-works.md). Directional ablation is due
to Arditi et al. 2024 (arXiv 2406.11717); `full`, the norm-preserving variant, to Jim Lai (2025).

One direction is the usual case; k orthonormal directions make an edit of rank k:
W^ - sum_j a_j v_j (v_j^T W^). Where row norms differ, `pre` and `full` do not make the result
orthogonal to the directions.

The vectors of a fit (`Vectors`) were found by the gradient, so what is read and what is written
are different: W - sum_j a_j u_j (q_j^T W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heretic.records.plan import RowNormalization

SMALLEST_GAIN = 1e-3
"""Smallest gain that is divided by, relative to the largest. A channel with a smaller gain hardly
enters the stream, and dividing by its gain would make the edit there far too large."""

ROUNDINGS = 8
"""Machine epsilons. An edited row whose squared norm is below this many epsilons of the original
row's is rounding noise. It becomes zero and is not scaled up to the original norm."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """Adapter factors: W' = W + b a (LoRA), or magnitude * normalise_rows(W + b a) (DoRA).

    Attributes:
        a: [k, d_in].
        b: [d_out, k].
        magnitude: [d_out] for DoRA (Liu et al. 2024, arXiv 2402.09353); None for LoRA.
    """

    a: Tensor
    b: Tensor
    magnitude: Tensor | None


@dataclass(frozen=True, slots=True)
class OutputEdit:
    """y' = scale * (y - sum_j write_j (read_j . y)) on the bias-free output y of a writer.

    Attributes:
        write: weight * (v * n) of each direction, [k, d_out]; weight * u of a fit.
        read: v / n of each direction, [k, d_out]; q of a fit.
        scale: Row factors of `full`, [d_out]; None for `none` and `pre`.
        row_norms: n, [d_out]; ones for `none` (1 / gains where a norm follows).
        moves_bias: Whether the bias is edited too, like the rest of the output. Of stacked edits
            that differ in this, bool [rows].
    """

    write: Tensor
    read: Tensor
    scale: Tensor | None
    row_norms: Tensor
    moves_bias: bool | Tensor = False

    def apply(self, output: Tensor, bias: Tensor | None = None) -> Tensor:
        """Edit a module's output [..., d_out]; the bias is subtracted before and added after.

        Where this edit's tensors have a first dimension `rows` (see the method `rows`), each row of
        an output [rows, ..., d_out] gets its own edit. Half precisions are computed in float32 and
        returned in the output's dtype. Differentiable in the output and in the edit.
        """
        dtype = torch.promote_types(output.dtype, torch.float32)
        plain = output.to(dtype)
        if bias is not None:
            plain = plain - bias.to(dtype)
        read, write = self.read.to(plain.device, dtype), self.write.to(plain.device, dtype)
        plain = plain.reshape(*read.shape[:-2], -1, plain.shape[-1])
        multiply_add = torch.addmm if read.dim() == 2 else torch.baddbmm
        edited = multiply_add(plain, plain @ read.mT, write, alpha=-1)
        if self.scale is not None:
            edited = edited * self.scale.to(plain.device, dtype).unsqueeze(-2)
        if bias is not None:
            edited = edited + bias.to(dtype)
        return edited.reshape(output.shape).to(output.dtype)

    def rows(self, index: Tensor) -> OutputEdit:
        """Pick edits from stacked ones by `index` [rows]; the result has tensors [rows, ...]."""
        index = index.to(self.read.device)
        moves = self.moves_bias
        # On a CPU `index_select` takes a tenth of the time of indexing.
        return OutputEdit(
            self.write.index_select(0, index),
            self.read.index_select(0, index),
            None if self.scale is None else self.scale.index_select(0, index),
            self.row_norms.index_select(0, index),
            moves if isinstance(moves, bool) else moves.index_select(0, index),
        )

    def edited_weight(self, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The edited weight: its plain output equals the edited output.

        Args:
            weight: [d_out, d_in].
            out: Memory for the result; None allocates it. May be `weight` itself.

        Returns:
            [d_out, d_in] in the dtype of `weight`.
        """
        edited = torch.addmm(weight, self.write.mT, self.read @ weight, alpha=-1, out=out)
        return edited if self.scale is None else edited.mul_(self.scale.unsqueeze(-1))

    def edited_bias(self, bias: Tensor) -> Tensor:
        """The bias [..., d_out] after a single edit; unchanged unless `moves_bias`."""
        if not self.moves_bias:
            return bias
        return bias - (bias @ self.read.to(bias).mT) @ self.write.to(bias)

    def low_rank(self, weight: Tensor) -> LowRank:
        """Exact adapter factors of rank k for the weight [d_out, d_in]."""
        magnitude = None
        if self.scale is not None:
            # PEFT renormalises rows of W + BA itself: a row that the edit zeroes has magnitude 0.
            magnitude = torch.where(self.scale == 0, 0.0, self.row_norms)
        return LowRank(a=self.read @ weight, b=-self.write.mT, magnitude=magnitude)


def stack(edits: Sequence[OutputEdit | None]) -> OutputEdit:
    """Stack edits of one writer along a new first dimension; None leaves the output unchanged.

    Raises:
        ValueError: All of them are None.
    """
    known = [edit for edit in edits if edit is not None]
    if not known:
        raise ValueError("no edit to stack")
    rank = max(len(edit.read) for edit in known)
    nothing = torch.zeros_like(known[0].read)
    one = torch.ones_like(known[0].row_norms)
    whole = [edit or OutputEdit(nothing, nothing, None, one) for edit in edits]
    scaled = any(edit.scale is not None for edit in whole)
    scales = [one if edit.scale is None else edit.scale for edit in whole]
    kinds = {bool(edit.moves_bias) for edit in known}
    # A row without an edit moves nothing, so it counts as either.
    moves = [edit is None or bool(edit.moves_bias) for edit in edits]
    return OutputEdit(
        moves_bias=kinds.pop() if len(kinds) == 1 else torch.tensor(moves, device=one.device),
        write=torch.stack([_padded(edit.write, rank) for edit in whole]),
        read=torch.stack([_padded(edit.read, rank) for edit in whole]),
        scale=torch.stack(scales) if scaled else None,
        row_norms=torch.stack([edit.row_norms for edit in whole]),
    )


def _padded(vectors: Tensor, rank: int) -> Tensor:
    """Append rows of zeros to [k, d_out], up to [rank, d_out]."""
    missing = rank - len(vectors)
    return (
        vectors
        if not missing
        else torch.cat([vectors, vectors.new_zeros(missing, vectors.shape[1])])
    )


def _guarded(gains: Tensor) -> Tensor:
    """Gains, each with a magnitude of at least `SMALLEST_GAIN` times the largest, to divide by."""
    smallest = SMALLEST_GAIN * gains.abs().max()
    return torch.where(gains < 0, -1.0, 1.0) * gains.abs().clamp_min(smallest)


def row_norms(weight: Tensor) -> Tensor:
    """Euclidean norms of the rows, [d_out]; a row of norm 0 counts as 1."""
    norms = torch.linalg.vector_norm(weight, dim=1)
    return torch.where(norms == 0, 1.0, norms)


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of a writer's fit, in the space of its output.

    Attributes:
        write: u_j, [k, d_out].
        read: q_j, [k, d_out].
    """

    write: Tensor
    read: Tensor


@dataclass(frozen=True, slots=True)
class Ablation:
    """A writer's edit along given vectors without its ablation weights; plans share it.

    Attributes:
        directions: Orthonormal v_j, [k, d_out]; u_j / n of a fit.
        read: v_j / n, [k, d_out]; q_j of a fit.
        row_norms: n, [d_out]; ones for `none`.
        cross: g_j = W^ p_j with p_j = read_j^T W, [k, d_out]; for `full` only.
        gram: p_i . p_j, [k, k]; for `full` only.
        empty: Which rows of the weight are all zeros, bool [d_out]; for `full` only.
        moves_bias: Whether biases are edited too.
    """

    directions: Tensor
    read: Tensor
    row_norms: Tensor
    cross: Tensor | None = None
    gram: Tensor | None = None
    empty: Tensor | None = None
    moves_bias: bool = False

    def edit(self, ablation_weights: Tensor) -> OutputEdit:
        """The edit with ablation weights [k], or stacked edits with weights [rows, k].

        Differentiable in the ablation weights. With one row of them per row of a batch, one
        backward pass gives the gradient of each row.
        """
        weighted = ablation_weights.unsqueeze(-1) * self.directions
        return OutputEdit(
            write=weighted * self.row_norms,
            read=self.read.expand_as(weighted),
            scale=None if self.cross is None else self._scale(weighted),
            row_norms=self.row_norms.expand(*weighted.shape[:-2], -1),
            moves_bias=self.moves_bias,
        )

    def _scale(self, weighted: Tensor) -> Tensor:
        """s_i = |w_i| / |w_i - sum_j a_j v_ji p_j| on normalised rows w_i, [..., d_out].

        Args:
            weighted: a_j v_j, [..., k, d_out].
        """
        assert self.cross is not None
        assert self.gram is not None
        assert self.empty is not None
        squared = (
            1.0
            - 2.0 * (weighted * self.cross).sum(dim=-2)
            + (weighted * (self.gram @ weighted)).sum(dim=-2)
        )
        # A row of zeros has g = 0 and would become -a v_i p; it must stay zero.
        smallest = ROUNDINGS * torch.finfo(weighted.dtype).eps
        gone = (squared < smallest) | self.empty
        return torch.where(gone, 0.0, squared.clamp_min(smallest).rsqrt())


def make_ablation(
    weight: Tensor,
    directions: Tensor,
    row_normalization: RowNormalization,
    *,
    norms: Tensor | None = None,
    gains: Tensor | None = None,
) -> Ablation:
    """Compute what all edits of a writer along these directions have in common.

    Args:
        weight: W, [d_out, d_in], float32 or float64.
        directions: Orthonormal v_j in the residual space, [k, d_out].
        row_normalization: The variant. With `full`, rows of norm 0 stay 0.
        norms: `row_norms(weight)`, if already known.
        gains: Factors g by which a norm after the writer multiplies each channel, [d_out]. The
            stream receives g * (W x), so the rows of g * W are edited. `pre` and `full` need only
            the sign of g, because they undo the scale of each row.

    Raises:
        ValueError: Shapes do not fit.
    """
    if directions.dim() != 2 or directions.shape[1] != weight.shape[0]:
        raise ValueError(
            f"directions of shape {tuple(directions.shape)} cannot edit a weight of shape "
            f"{tuple(weight.shape)}"
        )
    v = directions.to(weight.device, weight.dtype)
    g = None if gains is None else gains.to(v)
    if row_normalization == "none":
        n = torch.ones_like(v[0]) if g is None else 1.0 / _guarded(g)
        return Ablation(directions=v, read=v / n, row_norms=n)
    if g is not None:
        v = v * torch.where(g < 0, -1.0, 1.0)
    n = row_norms(weight) if norms is None else norms.to(weight.device, weight.dtype)
    if row_normalization == "pre":
        return Ablation(directions=v, read=v / n, row_norms=n)
    return _keeping_norms(weight, v, v / n, n)


def make_fitted(
    weight: Tensor,
    vectors: Vectors,
    row_normalization: RowNormalization,
    *,
    norms: Tensor | None = None,
) -> Ablation:
    """Compute what all edits of a writer by these vectors of a fit have in common.

    Args:
        weight: W, [d_out, d_in], float32 or float64.
        row_normalization: With `full`, the weight's row norms are kept. `none` and `pre` are the
            same: a fit finds its vectors for the weight as it is.
        norms: `row_norms(weight)`, if already known.

    Raises:
        ValueError: Shapes do not fit.
    """
    write, read = (v.to(weight.device, weight.dtype) for v in (vectors.write, vectors.read))
    if write.shape != read.shape or write.dim() != 2 or write.shape[1] != weight.shape[0]:
        raise ValueError(
            f"vectors of shapes {tuple(write.shape)} and {tuple(read.shape)} cannot edit a weight "
            f"of shape {tuple(weight.shape)}"
        )
    if row_normalization != "full":
        return Ablation(directions=write, read=read, row_norms=torch.ones_like(write[0]))
    n = row_norms(weight) if norms is None else norms.to(weight.device, weight.dtype)
    return _keeping_norms(weight, write / n, read, n)


def _keeping_norms(weight: Tensor, directions: Tensor, read: Tensor, norms: Tensor) -> Ablation:
    """An edit of `full`, whose row factors follow from how each row meets the vectors."""
    p = read @ weight
    return Ablation(
        directions=directions,
        read=read,
        row_norms=norms,
        cross=(p @ weight.mT) / norms,
        gram=p @ p.mT,
        empty=(weight.amax(dim=1) == 0) & (weight.amin(dim=1) == 0),
    )
