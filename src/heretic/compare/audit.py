"""Check a saved model against its base and against what its documents say.

The base's files are read, not the model in memory: what is audited is what others will load.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.compare.adapter_audit import adapter_findings
from heretic.compare.expected import Expected, expected_tensors
from heretic.compare.figures import figure_findings
from heretic.compare.file_audit import companion_findings, digest_findings, index_findings
from heretic.compare.findings import Finding
from heretic.compare.packed_audit import packed_findings, shown_unpacked
from heretic.compare.side import Side, open_side
from heretic.compare.weight_audit import weight_findings
from heretic.errors import ExportError, HereticError
from heretic.events import Reporter
from heretic.export.documents.places import found_again
from heretic.export.documents.reproduction import Reproduction
from heretic.export.files import REPRODUCTION
from heretic.model.source import ModelSource
from heretic.system.adapters import model_identity
from heretic.system.hub import gguf_parts, is_local

if TYPE_CHECKING:
    from heretic.architectures.resolver import Writer


def audit(
    folder: Path,
    reporter: Reporter,
    *,
    base: ModelSource | None = None,
    writers: Sequence[Writer] | None = None,
    digests: bool = True,
) -> list[Finding]:
    """Check a folder that Heretic saved.

    Args:
        base: The base model; None for the one that the folder's documents name.
        writers: The model's residual writers; None for those that the configuration tells.
        digests: Whether weight files are hashed and compared with their recorded digests.

    Returns:
        What is wrong, and what could not be audited; empty if all is as it should be.

    Raises:
        ExportError: The folder holds no reproduction file that can be read.
    """
    recorded = Reproduction.read(folder / REPRODUCTION)
    findings = [
        *digest_findings(folder, recorded, weights=digests),
        *figure_findings(folder, recorded),
    ]
    if recorded.strategy == "merge":
        findings += index_findings(folder)
    source, told = _source(folder, recorded, base)
    if source is None:
        return [*findings, *told]
    return [*findings, *told, *_against_base(folder, recorded, source, writers, reporter)]


def _source(
    folder: Path, recorded: Reproduction, named: ModelSource | None
) -> tuple[ModelSource | None, list[Finding]]:
    """The base, and what is to be said of it; None if it is not here."""
    digest = recorded.places.get("model")
    if named is not None:
        if digest is not None and is_local(named.model) and model_identity(named.model) != digest:
            text = f"The base {named.model} is not the model that {REPRODUCTION} records."
            return named, [Finding("base", text)]
        return named, []
    model, commit = recorded.settings.get("model"), recorded.settings.get("model_commit")
    try:
        settings = {"model": model}
        model = found_again(settings, recorded.places, {}, folder.absolute())["model"]
    except ExportError:
        return None, [_not_audited(f"the base {model} is not here as it was; name it with --base")]
    if not isinstance(model, str) or not model:
        return None, [Finding("base", f"{REPRODUCTION} names no base model.")]
    return ModelSource(model=model, model_commit=commit, trust_remote_code=False), []


def _not_audited(reason: str) -> Finding:
    text = f"The weights and the files beside them were not audited: {reason.rstrip('.')}."
    return Finding("base", text, failed=False)


def _against_base(
    folder: Path,
    recorded: Reproduction,
    source: ModelSource,
    writers: Sequence[Writer] | None,
    reporter: Reporter,
) -> list[Finding]:
    if gguf_parts(source.model) is not None:
        return [_not_audited(f"the base {source.model} is a GGUF file")]
    try:
        base = open_side(source.model, source.model_commit, download=False)
    except HereticError as error:
        return [_not_audited(error.message)]
    findings = companion_findings(folder, base, recorded.strategy)
    if base.quantization is not None:
        return [*findings, *_packed(folder, recorded, source, base, writers, reporter)]
    expected, unknown = _expected(recorded, source, base, writers)
    findings += unknown
    if recorded.strategy == "adapter":
        return findings + adapter_findings(folder, recorded, base, expected)
    try:
        saved = open_side(str(folder.absolute()), download=False)
    except HereticError as error:
        return [*findings, Finding("weights", f"The weights cannot be read: {error.message}")]
    return findings + weight_findings(saved, base, recorded.plan, expected, reporter)


def _packed(
    folder: Path,
    recorded: Reproduction,
    source: ModelSource,
    base: Side,
    writers: Sequence[Writer] | None,
    reporter: Reporter,
) -> list[Finding]:
    """The findings on a base with packed weights, and what was saved from it packed."""
    text = f"The weights were not audited: the base is quantised ({base.quantization})."
    unaudited = [Finding("weights", text, failed=False)]
    if recorded.strategy == "adapter":
        return unaudited
    try:
        saved = open_side(str(folder.absolute()), download=False)
        shown = shown_unpacked(base)
    except HereticError as error:
        return [
            *unaudited,
            Finding("weights", f"They cannot be read: {error.message}", failed=False),
        ]
    if saved.quantization != base.quantization or not shown.checkpoint.packed:
        return unaudited
    expected, unknown = _expected(recorded, source, shown, writers)
    return [*unknown, *packed_findings(saved, shown, expected, reporter)]


def _expected(
    recorded: Reproduction, source: ModelSource, base: Side, writers: Sequence[Writer] | None
) -> tuple[dict[str, Expected] | None, list[Finding]]:
    """The tensors that the plan may edit; None if that is not known, with the reason."""
    by_hand: Any = recorded.settings.get("residual_writers") or ()
    try:
        found = expected_tensors(
            source, base, recorded.plan, writers=writers, residual_writers=tuple(by_hand)
        )
    except HereticError as error:
        return None, [_unknown_writers(error.message)]
    return found, []


def _unknown_writers(reason: str) -> Finding:
    text = (
        f"Which tensors the plan may edit, and their ranks, was not audited: {reason.rstrip('.')}."
    )
    return Finding("weights", text, failed=False)
