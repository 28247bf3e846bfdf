"""What an edit of one matrix is, told from the matrix before and after.

A directional ablation is W' = (I - V a V^T) W (Arditi et al. 2024, arXiv 2406.11717). So the
difference D has the rank of V, its left singular vectors span V, and V^T D = -a V^T W: what is
removed is a multiple of what is there. Ablation on normalised rows fulfils the same equation for W
and D divided by the rows' norms. A norm-preserving edit multiplies each row by a factor of its own
afterwards; with these factors known, W' / s - W has low rank again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from heretic.compare.rank import (
    EXACT,
    Spectrum,
    rounding,
    singular,
    spectrum,
    without_rounding,
)

EditKind = Literal[
    "ablation", "low_rank", "full_rank", "vector", "rounding", "not_finite", "identical"
]
"""`ablation`: as above. `low_rank`: the difference has low rank, and is no ablation. `full_rank`:
it has not. `vector`: a tensor of one dimension. `rounding`: the numbers of one file are those of
the other in another dtype, or rounded otherwise. `not_finite`: one holds NaN or infinity."""

FITS = 0.1
"""Largest relative error of the equation of an ablation, beyond rounding."""

ROUNDED = 0.5
"""Largest part of it that rounding may excuse."""

LOW = 4
"""A rank is low if it is at most the shorter side divided by this, and was computed whole."""

RANKS = (1, 2, 4, 8)
"""Ranks that are tried for edits that keep the norms of rows."""

STEPS, SETTLED = 50, 2e-7
"""Most iterations in search of the rows' factors, and the change of factors that ends them."""

NORMS = 3.0
"""Norms count as kept if they changed by no more than so many standard deviations of rounding."""

EPSILONS = 4
"""Machine epsilons of float32 that the arithmetic of norms may add to rounding."""


@dataclass(frozen=True, slots=True)
class MatrixEdit:
    """How a matrix differs from its original.

    Attributes:
        kind: See `EditKind`.
        change: Frobenius norm of the difference.
        size: Frobenius norm of the original.
        rank: Numerical rank of the difference; after division by the rows' factors if `scaled`.
        more: Whether `rank` is a lower bound.
        norms_kept: Whether the norm of every row is the original's, up to rounding.
        norm_change: Largest relative change of a row's norm.
        scaled: Whether the edit multiplied each row by a factor of its own.
        transposed: Whether the matrix is stored as [d_in, d_out], which an ablation shows.
        left: Directions written by the edit, orthonormal [d_out, k]; None without low rank.
    """

    kind: EditKind
    change: float
    size: float
    rank: int = 0
    more: bool = False
    norms_kept: bool = False
    norm_change: float = 0.0
    scaled: bool = False
    transposed: bool = False
    left: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A matrix before and after, both float32 [d_out, d_in], and what rounding does to them.

    Attributes:
        noise: Standard deviation of the rounding error of an entry.
        dtype: The dtype that the edited matrix was rounded to.
    """

    old: Tensor
    new: Tensor
    noise: float = 0.0
    dtype: torch.dtype = torch.float32

    @property
    def flipped(self) -> Pair:
        """Both transposed."""
        return replace(self, old=self.old.T, new=self.new.T)


def compared(old: Tensor, new: Tensor) -> MatrixEdit:
    """Tell how a matrix was edited.

    Args:
        old, new: [m, n], or [n] for a vector, in the dtypes of their files.
    """
    pair = Pair(old.float(), new.float(), dtype=new.dtype)
    delta = pair.new - pair.old
    change, size = (float(torch.linalg.vector_norm(tensor)) for tensor in (delta, pair.old))
    if not torch.isfinite(pair.new).all() or not torch.isfinite(pair.old).all():
        return MatrixEdit("not_finite", change, size)
    if change == 0 and old.dtype == new.dtype:
        return MatrixEdit("identical", 0.0, size, norms_kept=True)
    if same_numbers(old, new):
        return MatrixEdit("rounding", change, size, norms_kept=True)
    if old.dim() < 2:
        return MatrixEdit("vector", change, size)
    pair = replace(pair, noise=rounding(pair.new, new.dtype))
    found = _edit(pair, delta)
    coarse = torch.finfo(old.dtype).eps > torch.finfo(new.dtype).eps
    if coarse and found.kind == "full_rank":  # the original may be the one that was rounded
        noise = rounding(pair.old, old.dtype)
        found = _edit(replace(pair, noise=noise, dtype=old.dtype), delta)
    if found.rank == 0 and change <= NORMS * pair.noise * delta.numel() ** 0.5:
        found = MatrixEdit("rounding", change, size, norms_kept=True)
    return replace(found, change=change, size=size)


def same_numbers(old: Tensor, new: Tensor) -> bool:
    """Whether one tensor is the other in another dtype, or equal to it."""
    return torch.equal(old.to(new.dtype), new) or torch.equal(new.to(old.dtype), old)


def _edit(pair: Pair, delta: Tensor) -> MatrixEdit:
    kept, most = norms_kept(pair)
    found = without_rounding(spectrum(delta, pair.noise), RANKS, partial(_rounded, pair, None))
    plain = MatrixEdit(
        "full_rank", 0.0, 0.0, rank=found.rank, more=found.more, norms_kept=kept, norm_change=most
    )
    columns_kept = not kept and norms_kept(pair.flipped)[0]
    if plain.rank > 1 and (kept or columns_kept):
        scaled = _as_scaled(pair.flipped if columns_kept else pair, plain)
        if scaled is not None:
            return replace(scaled, norms_kept=True, transposed=columns_kept)
    if is_low(found, delta):
        plain = replace(plain, kind="low_rank", left=found.left)
        return _as_ablation(pair, delta, plain) or _flipped(pair, delta, plain) or plain
    return plain


def _rounded(pair: Pair, factors: Tensor | None, delta: Tensor) -> Tensor:
    """The difference that is read from a file in which an edit was rounded.

    Args:
        factors: Factors of the rows, [m, 1], by which the edited matrix was multiplied and the
            difference is divided; None for none.
    """
    edited = pair.old + delta
    if factors is None:
        return edited.to(pair.dtype).float() - pair.old
    return (edited * factors).to(pair.dtype).float() / factors - pair.old


def is_low(found: Spectrum, matrix: Tensor) -> bool:
    """Whether a spectrum is one of low rank."""
    return not found.more and found.rank <= max(1, min(matrix.shape) // LOW)


def norms_kept(pair: Pair) -> tuple[bool, float]:
    """Whether the norms of all rows are kept up to rounding; their largest relative change."""
    old, new = (torch.linalg.vector_norm(tensor, dim=1) for tensor in (pair.old, pair.new))
    change = (new - old).abs()
    # An error that is independent in each entry moves the norm of a row by as much as one entry.
    deviations = change / (pair.noise + EPSILONS * torch.finfo(old.dtype).eps * old)
    relative = float((change / old.clamp_min(torch.finfo(old.dtype).tiny)).max())
    rms = float(deviations.nan_to_num().square().mean().sqrt())
    return rms <= NORMS, relative


# --- ablations -----------------------------------------------------------------------------


def _flipped(pair: Pair, delta: Tensor, plain: MatrixEdit) -> MatrixEdit | None:
    found = _as_ablation(pair.flipped, delta.T, plain)
    return None if found is None else replace(found, transposed=True)


def _as_ablation(pair: Pair, delta: Tensor, plain: MatrixEdit) -> MatrixEdit | None:
    """The edit as an ablation of the matrix or of its normalised rows; None if it is none."""
    norms = torch.linalg.vector_norm(pair.old, dim=1, keepdim=True)
    norms = torch.where(norms == 0, 1.0, norms)
    frames = (
        (pair.old, delta, pair.noise),
        (pair.old / norms, delta / norms, pair.noise / float(norms.mean())),
    )
    best: tuple[float, Tensor] | None = None
    for weight, change, noise in frames:
        found = spectrum(change, noise, plain.rank + 1)
        left = found.left[:, : plain.rank]
        error = _error(weight, change, left, noise)
        if error is not None and (best is None or error < best[0]):
            best = error, left
    if best is None:
        return None
    return replace(plain, kind="ablation", left=best[1])


def _error(weight: Tensor, change: Tensor, left: Tensor, noise: float) -> float | None:
    """Relative error of U^T D = -A U^T W with the best A; None if the equation does not hold."""
    removed, there = left.T @ change, left.T @ weight
    size = float(torch.linalg.vector_norm(removed))
    if not size:
        return None
    solved = torch.linalg.lstsq(there.T.double(), removed.T.double(), driver="gelsd").solution
    error = float(torch.linalg.vector_norm(removed.T - there.T @ solved.to(there))) / size
    excused = min(ROUNDED, 2 * noise * removed.numel() ** 0.5 / size)
    return error if error <= FITS + excused else None


# --- edits that keep norms -----------------------------------------------------------------


def _as_scaled(pair: Pair, plain: MatrixEdit) -> MatrixEdit | None:
    """The edit as one of low rank, followed by a factor for each row; None if it is none."""
    for rank in RANKS:
        if rank > max(1, min(pair.old.shape) // LOW):
            return None
        factors = row_factors(pair, rank)
        delta = pair.new / factors - pair.old
        found = spectrum(delta, pair.noise + _inexact(pair), rank + 1)
        found = without_rounding(found, RANKS, partial(_rounded, pair, factors))
        if found.rank <= min(rank, plain.rank) and not found.more:
            low = replace(
                plain, kind="low_rank", rank=found.rank, more=False, scaled=True, left=found.left
            )
            return _as_ablation(pair, delta, low) or low
    return None


def row_factors(pair: Pair, rank: int) -> Tensor:
    """Factors s of the rows, [m, 1], that make W' / s - W a matrix of this rank.

    Where D = W' / s - W has the row space R, rows of W' and W differ outside R by their factors
    only. So factors and R are improved in turns, R by one step of subspace iteration, beginning
    with R of W' - W, from which the factors are missing: they differ from 1 in second order.
    """
    squares = pair.old.square().sum(dim=1)
    products = (pair.new * pair.old).sum(dim=1)
    scale = torch.ones_like(products)
    space = singular(pair.new - pair.old, rank, quick=True)[2][:rank].T
    for _ in range(STEPS):
        new, old = pair.new @ space, pair.old @ space
        outside = squares - old.square().sum(dim=1)
        factors = (products - (new * old).sum(dim=1)) / outside
        usable = (outside > 0) & (factors > 0) & torch.isfinite(factors)
        factors = torch.where(usable, factors, 1.0)
        settled = float((factors - scale).abs().max()) < SETTLED
        scale = factors
        if settled:
            break
        columns = torch.linalg.qr(new / scale.unsqueeze(1) - old).Q
        rows = pair.new.T @ (columns / scale.unsqueeze(1)) - pair.old.T @ columns
        space = torch.linalg.qr(rows).Q
    return scale.unsqueeze(1)


def has_rank(old: Tensor, new: Tensor, rank: int, *, scaled: bool, transposed: bool) -> bool:
    """Whether an edit has at most a known rank, which takes less time than to find the rank.

    Args:
        old, new: [m, n] in the dtypes of their files.
        scaled: Whether the edit may have multiplied each row by a factor of its own.
        transposed: Whether they are stored as [d_in, d_out].
    """
    pair = Pair(old.float(), new.float(), dtype=new.dtype)
    pair = replace(pair, noise=rounding(pair.new, new.dtype))
    pair = pair.flipped if transposed else pair
    factors = row_factors(pair, rank) if scaled else None
    delta = (pair.new if factors is None else pair.new / factors) - pair.old
    noise = pair.noise + (_inexact(pair) if scaled else 0.0)
    found = spectrum(delta, noise, rank + 1, quick=True)
    rounded = partial(_rounded, pair, factors)
    return without_rounding(found, (rank,), rounded, quick=True).rank <= rank


def _inexact(pair: Pair) -> float:
    """What the arithmetic of norms, in float32, adds to the rounding error of an entry."""
    return EPSILONS * torch.finfo(torch.float32).eps * float(pair.old.square().mean().sqrt())


# --- fits and adapters ---------------------------------------------------------------------


def reads_output(old: Tensor, new: Tensor, *, steps: int = 60) -> bool | None:
    """Whether an edit of low rank reads what the matrix writes, as fits do and adapters do not.

    A fit subtracts u (q^T W), so what it reads lies in the space of the rows of W; what an adapter
    reads may be any vector of the input. The two can be told apart only where a matrix has more
    columns than rows. Solved by conjugate gradients on the normal equations (Hestenes and Stiefel
    1952).

    Returns:
        None where it cannot be told.
    """
    if old.shape[0] > old.shape[1]:
        # Stored as [d_in, d_out], or it writes more than it reads: then nothing can be told.
        return reads_output(old.T, new.T, steps=steps) or None
    weight = old.double() if min(old.shape) <= EXACT else old.float()
    rows, columns = weight.shape
    if columns < rows * 1.25:
        return None
    delta = new.to(weight) - weight
    target = spectrum(delta.float(), 0.0, 1).right[0].to(weight)
    residual, gradient = target.clone(), weight @ target
    direction, power = gradient.clone(), gradient @ gradient
    for _ in range(steps):
        moved = weight.T @ direction
        if not float(power) or not float(moved @ moved):
            break
        residual = residual - power / (moved @ moved) * moved
        gradient = weight @ residual
        next_power = gradient @ gradient
        direction, power = gradient + next_power / power * direction, next_power
    return bool(torch.linalg.vector_norm(residual) < 0.5 * (1 - rows / columns) ** 0.5)
