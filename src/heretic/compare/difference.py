"""Which tensors of two checkpoints differ, and how: one tensor of each in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heretic.compare.edits import MatrixEdit, compared, reads_output
from heretic.compare.levels import bits
from heretic.compare.side import Side
from heretic.compare.tensors import same_bytes

LOOKED_AT = 3
"""Most matrices by which fits and adapters are told apart."""

Progress = Callable[[int, int], None]
"""Called with the number of tensors compared, and of all."""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How a tensor differs between two checkpoints.

    Attributes:
        name: Its name in the original.
        shape: Of the judged model's tensor.
        dtype, dtype_before: As safetensors names them; of a tensor with an adapter, F32.
        kind: As `edits.EditKind`, or `mixed` where experts differ in kind; `shape` where shapes
            differ; `unreadable` where a dtype is that of quantised weights.
        relative: Frobenius norm of the difference, relative to the original's; None if unreadable.
        rank: Numerical rank of the difference; the largest of all experts. 0 where it has none.
        more: Whether `rank` is a lower bound.
        scaled: Whether each row was multiplied by a factor of its own, and `rank` is that of the
            difference without it.
        norms_kept: Whether rows (of a transposed tensor: columns) keep their norms.
        norm_change: Largest relative change of a row's norm.
        experts, changed: Number of experts, and of those that differ; 0 for a single matrix.
        reads_output: Whether the edit reads what the matrix writes, as fits do and adapters do not;
            None if it was not looked at, or cannot be told.
        bits: Bits of a quantisation that the judged model's numbers show; None without one.
        left: Directions that the edit writes, [d_out, k]; None without low rank.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    dtype_before: str
    kind: str
    relative: float | None = None
    rank: int = 0
    more: bool = False
    scaled: bool = False
    norms_kept: bool = False
    norm_change: float = 0.0
    experts: int = 0
    changed: int = 0
    reads_output: bool | None = None
    bits: int | None = None
    left: Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; see docs/compare.md."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "dtype_before": self.dtype_before,
            "kind": self.kind,
            "relative": self.relative,
            "rank": self.rank,
            "rank_is_lower_bound": self.more,
            "rows_rescaled": self.scaled,
            "row_norms_kept": self.norms_kept,
            "largest_norm_change": self.norm_change,
            "experts": self.experts,
            "experts_changed": self.changed,
        }


@dataclass(frozen=True, slots=True)
class Names:
    """Which tensors of two checkpoints are the same one.

    Attributes:
        pairs: (name in the judged model, name in the original).
        added, lost: Names that only the judged model, only the original has.
    """

    pairs: tuple[tuple[str, str], ...]
    added: tuple[str, ...]
    lost: tuple[str, ...]


def paired_names(judged: Iterable[str], original: Iterable[str]) -> Names:
    """Pair names; releases of transformers differ in how names begin (`model.`, `language_model.`).

    Names that differ in their beginning are paired where both sides have one name that ends so.
    """
    ours, theirs = set(judged), set(original)
    pairs = {name: name for name in ours & theirs}
    left, right = _by_ending(ours - theirs), _by_ending(theirs - ours)
    for ending in left.keys() & right.keys():
        if len(left[ending]) == len(right[ending]) == 1:
            pairs[left[ending][0]] = right[ending][0]
    return Names(
        pairs=tuple(sorted(pairs.items(), key=lambda pair: pair[1])),
        added=tuple(sorted(ours - pairs.keys())),
        lost=tuple(sorted(theirs - set(pairs.values()))),
    )


_BEGINNINGS = {"model", "language_model", "transformer", "base_model", "text_model"}


def _by_ending(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        while len(parts) > 1 and parts[0] in _BEGINNINGS:
            del parts[0]
        found.setdefault(".".join(parts), []).append(name)
    return found


def differences(
    judged: Side, original: Side, names: Names, progress: Progress
) -> Iterator[TensorDifference]:
    """The tensors that differ, in the order of their names.

    Raises:
        ExportError: A file is damaged.
    """
    looked = 0
    for number, (ours, theirs) in enumerate(names.pairs):
        progress(number, len(names.pairs))
        if not is_equal(judged, ours, original, theirs):
            found = difference(judged, ours, original, theirs, look=looked < LOOKED_AT)
            looked += found.reads_output is not None
            if found.kind != "identical":  # with an adapter that adds nothing
                yield found
    progress(len(names.pairs), len(names.pairs))


def is_equal(judged: Side, ours: str, original: Side, theirs: str) -> bool:
    """Whether two tensors are equal to the byte, and no adapter adds to either."""
    touched = ours in judged.layers or theirs in original.layers
    return not touched and same_bytes(
        judged.checkpoint.tensors[ours], original.checkpoint.tensors[theirs]
    )


def difference(
    judged: Side, ours: str, original: Side, theirs: str, *, look: bool = False
) -> TensorDifference:
    """How a tensor differs.

    Args:
        look: Whether to look at what an edit of low rank reads, which takes longer.
    """
    shape = judged.checkpoint.tensors[ours].shape
    plain: Mapping[str, Any] = {
        "name": theirs,
        "shape": shape,
        "dtype": judged.dtype(ours),
        "dtype_before": original.dtype(theirs),
    }
    if shape != original.checkpoint.tensors[theirs].shape:
        return TensorDifference(**plain, kind="shape")
    if not (judged.can_read(ours) and original.can_read(theirs)):
        return TensorDifference(**plain, kind="unreadable")
    edits: list[MatrixEdit] = []
    reads, seen_bits = None, None
    for old, new in zip(original.matrices(theirs), judged.matrices(ours), strict=True):
        edit = compared(old, new)
        if look and edit.kind == "low_rank" and reads is None:
            reads = reads_output(old.float(), new.float())
        if edit.kind == "full_rank" and seen_bits is None:
            seen_bits = bits(new) if bits(old) is None else None
        edits.append(edit)
    return TensorDifference(**plain, **_summed(edits), reads_output=reads, bits=seen_bits)


def _summed(edits: Sequence[MatrixEdit]) -> dict[str, Any]:
    changed = [edit for edit in edits if edit.kind != "identical"] or list(edits[:1])
    kinds = Counter(edit.kind for edit in changed)
    largest = max(changed, key=lambda edit: edit.change)
    size = sum(edit.size**2 for edit in edits) ** 0.5
    change = sum(edit.change**2 for edit in edits) ** 0.5
    return {
        "kind": next(iter(kinds)) if len(kinds) == 1 else "mixed",
        "relative": change / size if size else float(change > 0),
        "rank": max(edit.rank for edit in changed),
        "more": any(edit.more for edit in changed),
        "scaled": any(edit.scaled for edit in changed),
        "norms_kept": all(edit.norms_kept for edit in changed),
        "norm_change": max(edit.norm_change for edit in changed),
        "experts": len(edits) if len(edits) > 1 else 0,
        "changed": len([e for e in edits if e.kind != "identical"]) if len(edits) > 1 else 0,
        "left": largest.left,
    }


@dataclass(frozen=True, slots=True)
class Directions:
    """Whether the edits of several tensors write one direction.

    Attributes:
        tensors: Number of tensors with directions of the same width.
        smallest, median: Overlap with the direction of most tensors, from 0 to 1: the cosine for
            one direction, the root of the mean squared cosine of principal angles for several.
        within_layers: Smallest overlap of two tensors of one layer; None if no layer has two.
    """

    tensors: int
    smallest: float
    median: float
    within_layers: float | None = None

    @property
    def shared(self) -> bool:
        """Whether all tensors share their directions."""
        return self.smallest >= SAME

    @property
    def by_layer(self) -> bool:
        """Whether the tensors of a layer share directions, and layers do not."""
        return not self.shared and self.within_layers is not None and self.within_layers >= SAME

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; see docs/compare.md."""
        return {
            "tensors": self.tensors,
            "shared": self.shared,
            "by_layer": self.by_layer,
            "smallest_overlap": self.smallest,
            "median_overlap": self.median,
            "smallest_overlap_within_layers": self.within_layers,
        }


SAME = 0.9
"""Overlap from which directions count as one."""


def directions(found: Sequence[TensorDifference]) -> Directions | None:
    """Compare the directions that edits write; None where fewer than two tensors have any."""
    spaces = [(row.name, row.left) for row in found if row.left is not None and row.left.numel()]
    widths = Counter(len(left) for _, left in spaces)
    if not widths:
        return None
    width = widths.most_common(1)[0][0]
    spaces = [(name, left) for name, left in spaces if len(left) == width]
    if len(spaces) < 2:
        return None
    table = torch.tensor([[overlap(one, other) for _, other in spaces] for _, one in spaces])
    central = table[int(table.sum(dim=1).argmax())]
    layers: dict[int, list[int]] = {}
    for index, (name, _) in enumerate(spaces):
        number = layer_of(name)
        if number is not None:
            layers.setdefault(number, []).append(index)
    inside = [float(table[rows][:, rows].min()) for rows in layers.values() if len(rows) > 1]
    return Directions(
        len(spaces), float(central.min()), float(central.median()), min(inside, default=None)
    )


def overlap(one: Tensor, other: Tensor) -> float:
    """How far two spaces are the same, 0 to 1; of different dimensions, the smaller one counts.

    Args:
        one, other: Orthonormal columns, [d_out, k].
    """
    cosines = one.T.float() @ other.float()
    return float((cosines.square().sum() / min(cosines.shape)).sqrt().clamp_max(1.0))


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor's name tells: the first number in it."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
