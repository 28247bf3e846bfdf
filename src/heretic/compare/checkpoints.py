"""Compare two checkpoints: a verdict in one sentence, and what it rests on.

`compare_checkpoints` reads one tensor of each at a time. What kind of edit a whole model has
follows from the kinds of its tensors' differences (`heretic.compare.edits`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from heretic.compare.claims import Claim, claims
from heretic.compare.difference import (
    Directions,
    Names,
    TensorDifference,
    differences,
    directions,
    paired_names,
)
from heretic.compare.files import FileDifference, file_differences
from heretic.compare.parts import Part, parts
from heretic.compare.side import Side
from heretic.events import Reporter, StageFinished, StageProgress, StageStarted

Kind = Literal[
    "identical",
    "dtype_change",
    "directional_ablation",
    "norm_preserving_ablation",
    "fit",
    "norm_preserving_fit",
    "lora",
    "low_rank",
    "quantisation",
    "fine_tune",
    "mixed",
    "not_comparable",
]
"""Kinds of edits of a whole model; docs/compare.md describes them."""

WORDS: dict[str, str] = {
    "identical": "the weights are identical",
    "dtype_change": "only the dtype or the rounding changed",
    "directional_ablation": "directional ablation",
    "norm_preserving_ablation": "norm-preserving directional ablation",
    "fit": "a fitted edit of low rank",
    "norm_preserving_fit": "a fitted edit of low rank that keeps row norms",
    "lora": "a merged LoRA, or an edit like one",
    "low_rank": "an edit of low rank, by a fit or a LoRA",
    "quantisation": "quantisation",
    "fine_tune": "full fine-tuning, or a LoRA of high rank",
    "mixed": "edits of several kinds",
    "not_comparable": "the differences cannot be told",
}


@dataclass(frozen=True, slots=True)
class CheckpointComparison:
    """How two checkpoints differ.

    Attributes:
        judged, original: Names of the two.
        compared: Number of tensors that both have.
        differences: Tensors that differ, with those that differ in dtype alone.
        parts: Tensors that only one has.
        directions: Whether the edits write one direction; None if fewer than two tell.
        files: How the files beside the weights differ.
        claims: Figures that the judged model's card claims.
    """

    judged: str
    original: str
    compared: int
    differences: tuple[TensorDifference, ...] = ()
    parts: tuple[Part, ...] = ()
    directions: Directions | None = None
    files: tuple[FileDifference, ...] = ()
    claims: tuple[Claim, ...] = field(default=())

    @property
    def edited(self) -> tuple[TensorDifference, ...]:
        """Tensors that differ by more than their dtype."""
        return tuple(row for row in self.differences if row.kind != "rounding")

    @property
    def kind(self) -> Kind:
        """The kind of edit."""
        return kind_of(self.differences)

    def verdict(self) -> str:
        """One sentence: how much differs, and what edit that is."""
        return verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; docs/compare.md lists the keys."""
        return {
            "model": self.judged,
            "against": self.original,
            "kind": self.kind,
            "verdict": self.verdict(),
            "tensors": {"compared": self.compared, "different": len(self.edited)},
            "differences": [row.to_dict() for row in self.differences],
            "directions": None if self.directions is None else self.directions.to_dict(),
            "parts": [part.to_dict() for part in self.parts],
            "files": [file.to_dict() for file in self.files],
        }


EPSILONS = {"BF16": 2.0**-8, "F16": 2.0**-11}
"""Machine epsilons of half precisions, by their names in safetensors files."""


def compare_checkpoints(judged: Side, original: Side, reporter: Reporter) -> CheckpointComparison:
    """Compare a checkpoint with its original, tensor by tensor.

    Raises:
        ExportError: A weight file is damaged.
        ModelError: A configuration is damaged.
    """
    names = paired_names(judged.checkpoint.tensors, original.checkpoint.tensors)
    reporter.emit(StageStarted(f"Comparing {judged.name} with {original.name}"))

    def progress(done: int, total: int) -> None:
        reporter.emit(StageProgress(done, total, "tensors"))

    found = tuple(differences(judged, original, names, progress))
    reporter.emit(StageFinished(f"{len(names.pairs)} tensors"))
    return _comparison(judged, original, names, found)


def _comparison(
    judged: Side, original: Side, names: Names, found: tuple[TensorDifference, ...]
) -> CheckpointComparison:
    return CheckpointComparison(
        judged=judged.name,
        original=original.name,
        compared=len(names.pairs),
        differences=found,
        parts=tuple(parts(judged, original, names)),
        directions=directions(found),
        files=tuple(file_differences(judged.places, original.places)),
        claims=tuple(claims(judged.folder)),
    )


def kind_of(found: Sequence[TensorDifference]) -> Kind:
    """The kind of edit that differences of tensors add up to."""
    if not found:
        return "identical"
    edited = [row for row in found if row.kind != "rounding"]
    if not edited:
        return "dtype_change"
    matrices = [row for row in edited if row.kind != "vector"]
    return _kind_of_matrices([row for row in matrices if _is_clear(row)] or matrices)


def _is_clear(row: TensorDifference) -> bool:
    """Whether a difference is large enough to tell which kind of low rank it has.

    In one that is smaller than the rounding of a number, what is read is lost in rounding.
    """
    return row.kind != "low_rank" or (row.relative or 0.0) >= EPSILONS.get(row.dtype, 0.0)


def _kind_of_matrices(matrices: Sequence[TensorDifference]) -> Kind:
    kinds = {row.kind for row in matrices}
    if kinds & {"unreadable", "shape", "not_finite"}:
        return "not_comparable"
    if kinds <= {"full_rank"}:
        quantised = [row for row in matrices if row.bits is not None]
        return "quantisation" if len(quantised) > len(matrices) / 2 else "fine_tune"
    if kinds == {"ablation"}:
        kept = all(row.norms_kept for row in matrices)
        return "norm_preserving_ablation" if kept else "directional_ablation"
    return _low_rank(matrices) if kinds <= {"ablation", "low_rank"} else "mixed"


def _low_rank(matrices: Sequence[TensorDifference]) -> Kind:
    """Fits and adapters, told by what they read; a few of either kind may look like ablations."""
    reads = [row.reads_output for row in matrices if row.reads_output is not None]
    if not reads:
        kept = all(row.scaled for row in matrices)
        return "norm_preserving_fit" if kept else "low_rank"
    if not all(reads):
        return "lora" if not any(reads) else "mixed"
    return "norm_preserving_fit" if all(row.norms_kept for row in matrices) else "fit"


def verdict(found: CheckpointComparison) -> str:
    """One sentence: how much differs, and what edit that is."""
    edited = found.edited
    if not edited:
        text = f"All {found.compared} tensors that both have are equal"
        changed = len(found.differences)
        text += f" but for rounding in {changed}" if changed else ""
        return f"{text}: {WORDS[found.kind]}."
    head = f"{len(edited)} of {found.compared} tensors differ"
    middle = [_norms(edited), _shared(found.directions)]
    clauses = [head + _each(edited), *filter(None, middle)]
    return f"{'; '.join(clauses)}: {WORDS[found.kind]}{_bits(found)}."


def _each(edited: Sequence[TensorDifference]) -> str:
    matrices = [row for row in edited if row.rank]
    if not matrices or any(row.more for row in matrices):
        return ""
    ranks = sorted({row.rank for row in matrices})
    shown = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    each = "each" if len(matrices) == len(edited) else f"{len(matrices)} of them"
    return f", {each} by a matrix of rank {shown}"


def _norms(edited: Sequence[TensorDifference]) -> str:
    matrices = [row for row in edited if row.rank]
    kept = sum(row.norms_kept for row in matrices)
    if not matrices or not kept:
        return "row norms not kept" if matrices else ""
    return "row norms kept" if kept == len(matrices) else f"row norms kept in {kept}"


def _shared(found: Directions | None) -> str:
    if found is None:
        return ""
    if found.shared:
        return "one left direction for all"
    return "one left direction per layer" if found.by_layer else "left directions differ"


def _bits(found: CheckpointComparison) -> str:
    counts = Counter(row.bits for row in found.edited if row.bits is not None)
    if found.kind != "quantisation" or not counts:
        return ""
    return f" to about {counts.most_common(1)[0][0]} bits"
