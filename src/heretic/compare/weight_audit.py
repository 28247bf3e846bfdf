"""Whether the weights of a saved model are the base's, but for what the plan edits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from heretic.compare.difference import Names, is_equal, paired_names
from heretic.compare.edits import has_rank, same_numbers
from heretic.compare.expected import Expected
from heretic.compare.findings import Finding, shortened
from heretic.compare.parts import parts
from heretic.compare.side import Side
from heretic.compare.tensors import holds_experts
from heretic.events import Reporter, StageProgress
from heretic.export.safetensors.checkpoint import FLOATS
from heretic.records.plan import Plan


def weight_findings(
    saved: Side,
    base: Side,
    plan: Plan,
    expected: Mapping[str, Expected] | None,
    reporter: Reporter,
) -> list[Finding]:
    """Compare all tensors of a saved model with its base's; each is read once.

    Args:
        expected: The tensors that the plan may edit; None if that is not known.

    Raises:
        ExportError: A file is damaged.
    """
    names = paired_names(saved.checkpoint.tensors, base.checkpoint.tensors)
    findings = [
        Finding("weights", f"{part.sentence()}.")
        for part in parts(saved, base, names)
        if not part.harmless
    ]
    findings += _dtype_findings(saved, base, names)
    changed: dict[str, int] = {}
    for number, (ours, theirs) in enumerate(names.pairs):
        reporter.emit(StageProgress(number, len(names.pairs), "tensors"))
        if not is_equal(saved, ours, base, theirs):
            findings += _tensor_findings(saved, ours, base, theirs, plan, expected, changed)
    reporter.emit(StageProgress(len(names.pairs), len(names.pairs), "tensors"))
    if expected is not None:
        findings += _unedited(base, plan, expected, changed)
    return findings


def _dtype_findings(saved: Side, base: Side, names: Names) -> Iterator[Finding]:
    """Tensors keep the base's dtype; saved from memory, all have that of most of its numbers."""
    sizes: Counter[str] = Counter()
    for entry in base.checkpoint.tensors.values():
        sizes[entry.dtype] += math.prod(entry.shape)
    usual = sizes.most_common(1)[0][0] if sizes else ""
    wrong: dict[tuple[str, str], list[str]] = {}
    for ours, theirs in names.pairs:
        here, there = saved.checkpoint.tensors[ours].dtype, base.checkpoint.tensors[theirs].dtype
        if here not in (there, usual):
            wrong.setdefault((here, there), []).append(ours)
    for (here, there), tensors in wrong.items():
        text = f"Stored as {here}, while the base has {there}: {shortened(tensors)}."
        yield Finding("dtype", text)


def _tensor_findings(
    saved: Side,
    ours: str,
    base: Side,
    theirs: str,
    plan: Plan,
    expected: Mapping[str, Expected] | None,
    changed: dict[str, int],
) -> Iterator[Finding]:
    """What is wrong with a tensor whose bytes differ; counts its changed matrices."""
    entry, original = saved.checkpoint.tensors[ours], base.checkpoint.tensors[theirs]
    if entry.shape != original.shape:
        text = f"{ours} has the shape {list(entry.shape)}, the base's {list(original.shape)}."
        yield Finding("weights", text)
        return
    if not (saved.can_read(ours) and base.can_read(theirs)):
        yield Finding("weights", f"{ours} ({entry.dtype}) differs from the base.")
        return
    if expected is not None and theirs in expected:
        yield from _edited_findings(saved, ours, base, theirs, plan, expected[theirs], changed)
    elif not _only_rounded(saved, ours, base, theirs):
        if expected is not None:
            yield Finding(
                "weights", f"{ours} differs from the base, and the plan does not edit it."
            )
        elif not all(torch.isfinite(matrix).all() for matrix in saved.matrices(ours)):
            yield Finding("weights", f"{ours} holds numbers that are not finite.")


def _only_rounded(saved: Side, ours: str, base: Side, theirs: str) -> bool:
    """Whether a tensor differs by the rounding of its dtype alone."""
    dtype = FLOATS[saved.checkpoint.tensors[ours].dtype]
    agree = partial(_close, dtype=dtype) if theirs in base.layers else same_numbers
    pairs = zip(base.matrices(theirs), saved.matrices(ours), strict=True)
    return all(torch.isfinite(new).all() and agree(old, new) for old, new in pairs)


def _close(old: Tensor, new: Tensor, dtype: torch.dtype) -> bool:
    """Whether a base with an adapter agrees with a merge that was computed in some dtype."""
    size = torch.linalg.vector_norm(old.float())
    change = torch.linalg.vector_norm(new.float() - old.float())
    return bool(change <= 2 * torch.finfo(dtype).eps * size)


def _edited_findings(
    saved: Side,
    ours: str,
    base: Side,
    theirs: str,
    plan: Plan,
    expected: Expected,
    changed: dict[str, int],
) -> Iterator[Finding]:
    changed[theirs] = 0
    for number, (old, new) in enumerate(_matrices(saved, ours, base, theirs, expected.stacked)):
        where = ours if base.checkpoint.tensors[theirs].shape == old.shape else f"{ours}[{number}]"
        same = torch.equal(old, new)
        changed[theirs] += not same or not old.any()
        if not torch.isfinite(new).all():
            yield Finding("weights", f"{where} holds numbers that are not finite.")
            continue
        if same or expected.is_bias or theirs in base.layers:
            continue
        scaled = plan.row_normalization == "full"
        if not has_rank(old, new, plan.rank, scaled=scaled, transposed=expected.transposed):
            text = (
                f"{where} differs from the base by more than the plan's rank {plan.rank} and "
                f"rounding{' allow, with the norms of rows kept' if scaled else ' allow'}."
            )
            yield Finding("rank", text)


def _matrices(
    saved: Side, ours: str, base: Side, theirs: str, stacked: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of matrices; experts that stand one below the other in a matrix are taken apart."""
    for old, new in zip(base.matrices(theirs), saved.matrices(ours), strict=True):
        if stacked:
            yield from zip(old.chunk(stacked), new.chunk(stacked), strict=True)
        else:
            yield old, new


def _unedited(
    base: Side, plan: Plan, expected: Mapping[str, Expected], changed: Mapping[str, int]
) -> Iterator[Finding]:
    """Tensors that the plan edits and that are the base's nevertheless."""
    weights = {name: entry for name, entry in expected.items() if not entry.is_bias}
    if weights and not any(changed.values()):
        yield Finding("weights", "No tensor differs from the base, while the plan edits some.")
        return
    groups: dict[tuple[str, int], list[str]] = {}
    for name, entry in weights.items():
        groups.setdefault((entry.component, entry.layer), []).append(name)
    for names in groups.values():
        missing = [name for name in names if not changed.get(name) and _holds_numbers(base, name)]
        others = len(missing) < len(names)  # of the same layer: other experts
        missing = [name for name in missing if others or weights[name].surely]
        for name in missing:
            yield Finding("weights", f"{name} is the base's, while the plan edits it.")
    for name, count in changed.items():
        total = _experts(base, name, expected[name].stacked)
        if count and not expected[name].is_bias and count < total:
            text = f"{total - count} of the {total} experts in {name} are the base's, not edited."
            yield Finding("weights", text)


def _holds_numbers(base: Side, name: str) -> bool:
    return any(bool(matrix.any()) for matrix in base.matrices(name))


def _experts(base: Side, name: str, stacked: int) -> int:
    shape = base.checkpoint.tensors[name].shape
    return stacked or (shape[0] if holds_experts(shape) else 1)
