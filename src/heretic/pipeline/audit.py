"""The audit at the end of an export: what it finds is shown, put on the card, and ends the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.compare.audit import audit
from heretic.compare.findings import Finding, failures
from heretic.errors import AuditError
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.export.documents.write import base_revision, note_findings
from heretic.model.source import ModelSource

if TYPE_CHECKING:
    from heretic.architectures.resolver import Writer
    from heretic.model.core import Model


def audit_saved(
    folder: Path,
    reporter: Reporter,
    *,
    base: ModelSource | None = None,
    writers: Sequence[Writer] | None = None,
) -> list[Finding]:
    """Audit a folder that was saved just now.

    Args:
        base, writers: See `heretic.compare.audit.audit`.

    Returns:
        What could not be audited.

    Raises:
        AuditError: Something is wrong. The files stay, and their card says what.
        ExportError: The folder's documents cannot be read.
    """
    reporter.emit(StageStarted("Auditing the saved files"))
    findings = audit(folder, reporter, base=base, writers=writers, digests=False)
    wrong = failures(findings)
    told = f"{len(wrong)} findings" if wrong else "they are what the plan and the card say"
    reporter.emit(StageFinished(told))
    for finding in findings:
        reporter.emit(Notice(finding.text, "warning" if finding.failed else "info"))
    if wrong:
        note_findings(folder, [finding.text for finding in wrong])
        raise AuditError(
            f"The model saved in {folder} failed its audit: {wrong[0].text}",
            remedy=f"The files stay, and their card lists what was found ({len(wrong)} findings). "
            f"Do not use them; report this, with what `heretic audit {folder}` prints.",
        )
    return findings


def audit_export(folder: Path, model: Model, reporter: Reporter) -> None:
    """Audit a folder that was saved from a loaded model.

    Raises:
        AuditError: As `audit_saved`.
    """
    source = ModelSource(
        model=model.options.model,
        model_commit=base_revision(model),
        trust_remote_code=model.options.trust_remote_code,
    )
    audit_saved(folder, reporter, base=source, writers=model.writers)


def audit_reproduced(folder: Path, overrides: Mapping[str, Any], reporter: Reporter) -> None:
    """Audit a folder that `export.reproduce` saved.

    Args:
        overrides: The user's settings, among which may be the place of the base.

    Raises:
        AuditError: As `audit_saved`.
    """
    base = None
    if "model" in overrides:
        base = ModelSource(
            model=str(overrides["model"]),
            model_commit=overrides.get("model_commit"),
            trust_remote_code=bool(overrides.get("trust_remote_code", False)),
        )
    audit_saved(folder, reporter, base=base)
