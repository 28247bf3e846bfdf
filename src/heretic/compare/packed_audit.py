"""Whether a checkpoint that was saved packed is its base's to the byte, but for what was edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from heretic.compare.expected import Expected
from heretic.compare.findings import Finding, shortened
from heretic.compare.side import Side
from heretic.compare.tensors import same_bytes
from heretic.events import Reporter, StageProgress
from heretic.export.safetensors.packed import read, unpacked


def shown_unpacked(side: Side) -> Side:
    """A side whose packed weights have the names and shapes that they have unquantised.

    Raises:
        ModelError: See `heretic.export.safetensors.packed.unpacked`.
    """
    return replace(side, checkpoint=unpacked(side.checkpoint, side.name))


def packed_findings(
    saved: Side, base: Side, expected: Mapping[str, Expected] | None, reporter: Reporter
) -> Iterator[Finding]:
    """Compare all tensors of a saved checkpoint with its base's, byte by byte.

    Args:
        base: As `shown_unpacked` returns it; `saved` as its files are.
        expected: The tensors that the plan may edit; None if that is not known.

    Raises:
        ExportError: A file is damaged.
    """
    packed = base.checkpoint.packed
    originals = {e.key: e for name, e in base.checkpoint.tensors.items() if name not in packed}
    owner = {part.key: name for name, weight in packed.items() for part in weight.parts.values()}
    originals |= {p.key: p for weight in packed.values() for p in weight.parts.values()}
    changed: set[str] = set()
    for number, (name, original) in enumerate(originals.items()):
        reporter.emit(StageProgress(number, len(originals), "tensors"))
        entry = saved.checkpoint.tensors.get(name)
        if entry is None:
            yield Finding("weights", f"{name} is missing.")
        elif (entry.dtype, entry.shape) != (original.dtype, original.shape):
            yield Finding("weights", f"{name} has not the dtype and shape that it has in the base.")
        elif not same_bytes(entry, original):
            changed.add(owner.get(name, name))
    reporter.emit(StageProgress(len(originals), len(originals), "tensors"))
    if expected is None:
        return
    others = sorted(changed - expected.keys())
    if others:
        yield Finding("weights", f"Differ, and the plan does not edit them: {shortened(others)}.")
    same = sorted(name for name, e in expected.items() if e.surely and name not in changed)
    if same:
        yield Finding("weights", f"The base's, while the plan edits them: {shortened(same)}.")
    yield from _not_finite(saved, base, changed)


def _not_finite(saved: Side, base: Side, changed: set[str]) -> Iterator[Finding]:
    """Edited weights that do not hold numbers any more."""
    for name in sorted(changed & base.checkpoint.packed.keys()):
        weight = base.checkpoint.packed[name]
        parts = {part: read(saved.checkpoint.tensors[e.key]) for part, e in weight.parts.items()}
        if not weight.codec.decode(parts).isfinite().all():
            yield Finding("weights", f"{name} holds numbers that are not finite.")
