"""Write the files about a saved model: parameters, reproduction file, card, digests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import heretic
from heretic.export.documents.base_card import (
    base_metadata,
    carried_over,
    front_matter,
    split_front_matter,
)
from heretic.export.documents.card import model_card
from heretic.export.documents.reproduction import Reproduction, describe
from heretic.export.files import (
    CARD,
    PARAMETERS,
    REPRODUCTION,
    SUMS,
    inventory,
    read_json,
    sweep_half_written,
    write_json,
    write_sums,
    write_text,
)
from heretic.export.request import ExportRequest, Strategy
from heretic.records.plan import Plan, fit_file
from heretic.system.display import safe
from heretic.system.hub import display_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from heretic.architectures.resolver import Writer
    from heretic.model.core import Model

PARAMETERS_SCHEMA = 2
FAILED_AUDIT = "These files failed the audit of Heretic at the end of their export."


def write_documents(folder: Path, request: ExportRequest, strategy: Strategy, model: Model) -> None:
    """Write all of them for the model files that are in `folder` already."""
    revision = base_revision(model)
    write_fits(folder, request.trial.plan, model)
    parameters = {
        "schema_version": PARAMETERS_SCHEMA,
        "heretic_version": heretic.__version__,
        "base_model": display_name(request.options.model),
        "base_model_revision": revision,
        "strategy": strategy,
        "trial": request.trial.number,
        "plan": request.trial.plan.to_dict(),
        "weights": applied_weights(request.trial.plan, model.writers, model.n_layers),
        "scores": _scores(request),
    }
    write_json(folder / PARAMETERS, parameters)
    files = inventory(folder)
    reproduction = describe(request, strategy, model, revision, files)
    write_json(folder / REPRODUCTION, reproduction.to_dict())
    metadata = base_metadata(request.options.model, revision)
    write_text(folder / CARD, model_card(request, strategy, metadata))
    write_sums(folder, files)


def write_fits(folder: Path, plan: Plan, model: Model) -> None:
    """Write the vectors of the fits that a plan names."""
    for digest in plan.fits:
        path = folder / fit_file(digest)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(model.fits[digest].content())


def rewrite_scores(folder: Path, request: ExportRequest) -> None:
    """Update the scores in all of them; everything else in them stays.

    Raises:
        ExportError: A file is missing or damaged.
    """
    sweep_half_written(folder)
    (folder / SUMS).unlink(missing_ok=True)  # better none than one that no longer holds
    parameters = read_json(folder / PARAMETERS)
    write_json(folder / PARAMETERS, {**parameters, "scores": _scores(request)})
    reproduction = Reproduction.read(folder / REPRODUCTION)
    updated = replace(
        reproduction,
        before=request.baseline,
        after=request.scores,
        verified=request.verified is not None,
    )
    write_json(folder / REPRODUCTION, updated.to_dict())
    # The licence was looked up when the first card was written; the Hub need not be asked again.
    card = folder / CARD
    old = front_matter(card.read_text(encoding="utf-8")) if card.is_file() else {}
    metadata = carried_over(old, request.options.model)
    write_text(card, model_card(request, reproduction.strategy, metadata))
    write_sums(folder, updated.files)


def note_findings(folder: Path, findings: Sequence[str]) -> None:
    """Put at the top of the card of a saved model what an audit found; its digest follows.

    Args:
        findings: Sentences; nothing is written if there are none.

    Raises:
        ExportError: A file is missing or damaged.
    """
    if not findings:
        return
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    head, body = split_front_matter(text)
    rows = "".join(f"> - {' '.join(finding.split())}\n" for finding in findings)
    note = f"> [!CAUTION]\n> **{FAILED_AUDIT}**\n>\n{rows}\n"
    (folder / SUMS).unlink(missing_ok=True)
    write_text(card, safe(f"{head}\n{note}{body}"))
    write_sums(folder, Reproduction.read(folder / REPRODUCTION).files)


def base_revision(model: Model) -> str | None:
    """The Hub commit that the base model was loaded from; else the setting `model_commit`.

    The configuration of an adapter is its base's, which has another commit.
    """
    if model.options.adapter is not None:
        return model.options.model_commit
    commit = getattr(model.model.config, "_commit_hash", None)
    return str(commit) if commit else model.options.model_commit


def applied_weights(
    plan: Plan, writers: Iterable[Writer], n_layers: int
) -> dict[str, list[list[float]]]:
    """Ablation weights [layers][rank] of each component, by its name.

    They are 0.0 where a layer has no such writer.
    """
    weights: dict[str, list[list[float]]] = {}
    for writer in writers:
        rows = weights.setdefault(writer.component, [[0.0] * plan.rank for _ in range(n_layers)])
        rows[writer.layer] = list(plan.ablation_weights(writer.component, writer.layer))
    return weights


def _scores(request: ExportRequest) -> Mapping[str, Any]:
    full, long = request.full_precision, request.long_replies
    packed = request.repacked
    by_category = [table.to_dict() for table in request.categories]
    return {
        "before": [score.to_dict() for score in request.baseline],
        "after": [score.to_dict() for score in request.scores],
        "verified": request.verified is not None,
        "held_out": None if request.held_out is None else request.held_out.to_dict(),
        **({} if full is None else {"full_precision": full.to_dict()}),
        **({} if packed is None else {"packed_anew": packed.to_dict()}),
        **({} if long is None else {"long_replies": long.to_dict()}),
        **({} if not by_category else {"categories": by_category}),
    }
