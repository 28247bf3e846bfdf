"""The numerical rank of a difference of two matrices whose files are rounded.

A file in half precision holds each edited number rounded to that precision. The difference of an
edited matrix and its original is therefore the edit and, in every entry, an independent error of at
most half a unit in the last place. Such an error matrix has no singular value above about
s (sqrt(m) + sqrt(n)), where s is its standard deviation (Vershynin 2012, arXiv 1011.3027, theorem
5.31). What lies below twice that bound counts as rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REPEATED = 1.5
"""A singular value counts as rounding if rounding a matrix of lower rank gives one that is no more
than this many times smaller."""

EXACT = 256
"""Up to this length of the shorter side, all singular values are computed."""

SKETCHES = (16, 64)
"""Numbers of singular values that are looked for in larger matrices, until one is rounding."""

OVERSAMPLING, POWERS, SEED = 10, 2, 0
"""Of the randomised range finder: more columns than singular values, power iterations, seed."""

QUICK = 4, 1
"""The first two of these where a rank is known and only to be confirmed."""

SAFETY = 2.0
"""Multiple of the largest singular value of rounding errors that counts as rounding."""

SAMPLE = 2**17
"""Most entries from which the unit in the last place is estimated."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of a matrix above rounding, with their vectors.

    Attributes:
        left: [m, rank].
        values: [rank], descending.
        right: [rank, n].
        more: Whether there are more that were not computed, so that the rank is a lower bound.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    more: bool = False

    @property
    def rank(self) -> int:
        """Number of singular values above rounding."""
        return len(self.values)

    def first(self, rank: int) -> Spectrum:
        """The largest singular values alone."""
        return Spectrum(self.left[:, :rank], self.values[:rank], self.right[:rank])

    def matrix(self) -> Tensor:
        """The matrix that these values and vectors make up, [m, n]."""
        return (self.left * self.values) @ self.right


def rounding(matrix: Tensor, dtype: torch.dtype) -> float:
    """Standard deviation of the rounding errors of numbers like these in a dtype.

    Args:
        matrix: float32; of a large one every n-th entry is looked at.
    """
    entries = matrix.flatten()
    entries = entries[:: max(1, len(entries) // SAMPLE)]
    _, exponents = torch.frexp(entries)
    info = torch.finfo(dtype)
    units = torch.ldexp(torch.full_like(entries, info.eps / 2), exponents)
    units = units.clamp_min(info.tiny * info.eps)
    return float(units.double().square().mean().sqrt()) / 12**0.5 if len(entries) else 0.0


def spectrum(
    matrix: Tensor, noise: float, most: int | None = None, *, quick: bool = False
) -> Spectrum:
    """The singular values of a matrix above its rounding errors.

    Args:
        matrix: [m, n], float32.
        noise: Standard deviation of the rounding error of an entry.
        most: Look for no more than these in a large matrix.
        quick: See `singular`.
    """
    sizes = SKETCHES if most is None else (most,)
    exact = min(matrix.shape) <= EXACT
    for wanted in sizes:
        left, values, right = singular(matrix, wanted, quick=quick)
        rank = int((values > tolerance(matrix, noise, values)).sum())
        if exact or rank < len(values):
            return Spectrum(left[:, :rank], values[:rank], right[:rank])
    return Spectrum(left, values, right, more=True)


def without_rounding(
    found: Spectrum,
    ranks: Sequence[int],
    rounded: Callable[[Tensor], Tensor],
    *,
    quick: bool = False,
) -> Spectrum:
    """The part of a spectrum that is no consequence of rounding its largest values' matrix.

    Where an edit is smaller than half a unit in the last place it is lost in rounding. What is lost
    follows the edit, so it is no independent error, and may show as further singular values. They
    are told from an edit of higher rank by repetition: the matrix of lower rank is rounded as the
    file was, and its singular values are computed again.

    Args:
        ranks: Ranks to try, ascending.
        rounded: The difference that rounding makes of a difference.
        quick: See `singular`.
    """
    for rank in ranks:
        if rank >= found.rank:
            break
        again = singular(rounded(found.first(rank).matrix()), rank + 1, quick=quick)[1]
        if len(again) > rank and float(found.values[rank]) <= REPEATED * float(again[rank]):
            return found.first(rank)
    return found


def tolerance(matrix: Tensor, noise: float, values: Tensor) -> float:
    """Singular values up to this one count as rounding.

    The second term is that of `numpy.linalg.matrix_rank`: the error of float32 arithmetic.
    """
    rows, columns = matrix.shape
    largest = float(values[0]) if len(values) else 0.0
    eps = torch.finfo(matrix.dtype).eps
    bound: float = SAFETY * noise * (rows**0.5 + columns**0.5)
    return bound + max(rows, columns) * eps * largest


def singular(matrix: Tensor, wanted: int, *, quick: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular vectors and values, [m, k], [k], [k, n].

    Of a large matrix by a randomised range finder with power iterations (Halko, Martinsson and
    Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1), always with the same seed.

    Args:
        quick: Take a third of the time, with small singular values less exact.
    """
    if min(matrix.shape) <= EXACT:
        whole = torch.linalg.svd(matrix, full_matrices=False)
        return whole.U, whole.S, whole.Vh
    oversampling, powers = QUICK if quick else (OVERSAMPLING, POWERS)
    generator = torch.Generator().manual_seed(SEED)
    probe = torch.randn(matrix.shape[1], wanted + oversampling, generator=generator)
    basis = torch.linalg.qr(matrix @ probe.to(matrix)).Q
    for _ in range(powers):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left)[:, :wanted], values[:wanted], right[:wanted]
