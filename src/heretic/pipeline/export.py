"""Export a chosen trial: score it once more, save it, and check what was saved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from heretic.errors import AuditError
from heretic.events import Notice, whole_stages
from heretic.export import hub, saving, staging, verify
from heretic.export.request import HeldOut, LongReplies
from heretic.export.serving import adapter_text
from heretic.harness.store import figures_of
from heretic.pipeline.audit import audit_export
from heretic.pipeline.categories import category_tables
from heretic.pipeline.held_out import held_out_scores
from heretic.pipeline.long_replies import from_disk, long_replies
from heretic.pipeline.precision import in_full_precision, packed_anew
from heretic.pipeline.run import Session
from heretic.pipeline.shown import LongReplySets, keep_export
from heretic.records.categories import CategoryTable
from heretic.records.trial import Score, Trial


@dataclass(frozen=True, slots=True)
class Exported:
    """Scores of a saved model.

    Attributes:
        saved: Scores of the files, reloaded from disk, on the evaluation prompts.
        held_out: Scores on held-out prompts; None if there are none.
        long_replies: Scores with longer replies than in the search; None if no scorer reads them.
        compared: Number of trials that this one was chosen among.
        categories: Scores by category of the prompts; empty where the sets have no categories.
    """

    saved: tuple[Score, ...]
    held_out: HeldOut | None
    long_replies: LongReplies | None = None
    compared: int = 1
    categories: tuple[CategoryTable, ...] = ()


def export_trial(
    session: Session,
    trial: Trial,
    destination: Path,
    strategy: str,
    *,
    most_long: int | None = None,
    named: str | None = None,
) -> Exported:
    """Score a trial on long replies and held-out prompts, save it, and score the saved files.

    Args:
        most_long: Number of prompts of each set that get long replies; by default all.
        named: What the report calls the place, by default `destination`.

    Raises:
        ExportError: The trial cannot be saved, or the saved model does not score as in the search.
        AuditError: The saved files are not what the plan and the card say.
        RunError: A file with benchmark results is damaged.
    """
    # Checked first, since scoring takes minutes.
    saving.check_export(session.model, destination, strategy, session.settings.max_rank)
    with whole_stages(session.reporter) as reporter:
        session = replace(session, reporter=reporter)
        return _exported(session, trial, destination, strategy, most_long, named)


def _exported(
    session: Session,
    trial: Trial,
    destination: Path,
    strategy: str,
    most_long: int | None,
    named: str | None,
) -> Exported:
    replies = LongReplySets(session, trial)
    if strategy == "adapter":
        session.reporter.emit(Notice(adapter_text(trial.plan)))
    request = replace(
        session.request(trial),
        benchmarks=figures_of(session.folder.path, trial),  # first, since the file may be damaged
        long_replies=long_replies(session, trial, most_long, replies),
        held_out=held_out_scores(session, trial),
    )
    request = replace(request, categories=category_tables(session, trial, request.held_out))
    folder = saving.save(
        session.model, request, destination, strategy=strategy, reporter=session.reporter
    )
    evaluator, prompts, reporter = session.evaluator, session.prompts.evaluation, session.reporter
    request = verify.verify(
        folder,
        request,
        evaluator,
        reporter,
        measure_full=in_full_precision(session.settings, evaluator, prompts, reporter),
        measure_long=from_disk(evaluator, prompts, request.long_replies, reporter),
        measure_packed=packed_anew(evaluator, request, prompts, strategy),
    )
    scores = request.verified or (), request.held_out, request.long_replies
    keep_export(session, trial, (named or str(destination), strategy), scores, replies.sets)
    audit_export(folder, session.model, reporter)
    return Exported(
        *scores,
        request.compared,
        request.categories,
    )


def upload_trial(session: Session, trial: Trial, repo_id: str, private: bool, strategy: str) -> str:
    """Save a trial's model in a temporary folder, as `export_trial` does, and upload it.

    Returns:
        The address of the repository.

    Raises:
        ExportError: As `export_trial`; or the repository cannot be written to.
        AuditError: The saved files are not what the plan and the card say; nothing was uploaded.
    """
    full = hub.check_upload(repo_id)
    with staging.temporary() as folder:
        try:
            export_trial(session, trial, folder, strategy, named=full)
        except AuditError as error:
            kept = staging.keep(folder)
            told = f"The files are kept in {kept}; their card lists what was found."
            remedy = f"Nothing was uploaded. {told}"
            raise AuditError(error.message, remedy=remedy) from error
        with whole_stages(session.reporter) as reporter:
            return hub.upload(folder, full, private=private, reporter=reporter)
