"""Measures what a report shows and the search itself does not need, and keeps it in the run folder.

Geometry comes with the directions, from the same forward passes. Whole replies and sizes of edits
are measured of the few trials that the front proposes, when a search ends.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heretic.engine.opening import open_engine
from heretic.errors import HereticError, ModelError, is_of_interruption
from heretic.events import Notice, Reporter, StageFinished, StageStarted, whole_stages
from heretic.method.edits import OutputEdit
from heretic.model.core import Model
from heretic.model.reading import Prompts
from heretic.prompts import Prompt, PromptSets
from heretic.records.plan import Plan
from heretic.records.selection import named_rows
from heretic.records.trial import Score, Trial
from heretic.refusals import VERSION, classify
from heretic.runs.folder import RunFolder
from heretic.runs.shown import (
    ORIGINAL,
    Asked,
    Exported,
    ModuleSize,
    Reply,
    ReplySet,
    Shown,
    read_shown,
    write_shown,
)
from heretic.scorers import Outputs
from heretic.scorers.registry import detector_version

if TYPE_CHECKING:
    from heretic.export.request import HeldOut, LongReplies
    from heretic.pipeline.run import Session

_log = logging.getLogger(__name__)

SAMPLE = 100
"""Prompts of each set whose residuals the geometry is computed from, the first ones."""

SAMPLE_BYTES = 256 * 2**20
"""Of kept residuals; models with many wide layers get fewer prompts."""

REPLIED = {"bad": 100, "good": 20}
"""Evaluation prompts of each set whose replies are kept, the first ones."""

LEAST_REPLIED = 20
"""The same of other sets."""


# --- geometry ------------------------------------------------------------------------------


class ResidualSample:
    """Keeps the residuals of the first good and bad prompts while directions are computed."""

    def __init__(self, prompts: PromptSets) -> None:
        sets = (("good", prompts.good), ("bad", prompts.bad))
        self._places = {
            name: {id(prompt): place for place, prompt in enumerate(rows[:SAMPLE])}
            for name, rows in sets
        }
        self.of_directions: tuple[float, ...] = ()
        self._kept: dict[str, list[Tensor]] = {name: [] for name in self._places}

    def residuals(self, name: str, prompts: Prompts, residuals: Tensor) -> None:
        """Take the residuals of some prompts, float32 [prompts, layers + 1, hidden]."""
        bytes_each = max(1, residuals[0].numel() * residuals.element_size())
        most = max(2, SAMPLE_BYTES // 2 // bytes_each)
        places = self._places.get(name, {})
        rows = [i for i, prompt in enumerate(prompts) if places.get(id(prompt), most) < most]
        if rows:
            self._kept[name].append(residuals[rows].cpu())

    def lengths(self, lengths: Tensor) -> None:
        """Take the lengths of the differences along the directions, float64 [layers + 1]."""
        self.of_directions = tuple(lengths.tolist())

    def sets(self) -> tuple[Tensor, Tensor] | None:
        """The good and the bad residuals; None if there are none of one kind."""
        good, bad = self._kept["good"], self._kept["bad"]
        return (torch.cat(good), torch.cat(bad)) if good and bad else None


@contextmanager
def _only_warned(what: str, reporter: Reporter) -> Iterator[Reporter]:
    """Whatever fails here costs a part of the report, never the search or an export."""
    try:
        with whole_stages(reporter) as told:
            yield told
    except Exception as error:
        if is_of_interruption(error):
            raise
        _log.warning("The report lacks %s", what, exc_info=True)
        reason = error.message if isinstance(error, HereticError) else type(error).__name__
        reporter.emit(Notice(f"The report will lack {what}: {reason}.", "warning"))


def keep_geometry(folder: RunFolder, sample: ResidualSample, reporter: Reporter) -> None:
    """Compute the geometry of a sample of residuals, and keep it in a run folder.

    The lengths of directions are kept first. A failure is only a warning.
    """
    with _only_warned("lengths and geometry", reporter) as told:
        write_shown(folder, Shown(lengths=sample.of_directions))
        _keep_geometry(folder, sample, told)


def _keep_geometry(folder: RunFolder, sample: ResidualSample, reporter: Reporter) -> None:
    from heretic.report.geometry import residual_geometry

    sets = sample.sets()
    if sets is None:
        return
    good, bad = sets
    reporter.emit(StageStarted("Geometry of the residuals"))
    rows = residual_geometry(good.numpy(), bad.numpy())
    best = max(rows, key=lambda row: (row.probe, row.silhouette))
    shown = Shown(
        geometry=tuple(map(asdict, rows)),
        geometry_prompts=(len(good), len(bad)),
        lengths=sample.of_directions,
    )
    write_shown(folder, shown)
    told = f"layer {best.layer} tells them apart best" if math.isfinite(best.probe) else ""
    reporter.emit(StageFinished(told))


# --- proposed trials -----------------------------------------------------------------------


def keep_proposed(session: Session) -> None:
    """Keep whole replies of the trials that the front proposes, and sizes of their edits.

    What is kept of them already is not measured again. A failure is only a warning.
    """
    front = session.study.front
    trials = [front[row] for row in sorted(set(named_rows(front).values()))]
    if trials:
        with _only_warned("replies of the proposed trials", session.reporter) as told:
            _keep_proposed(replace(session, reporter=told), trials)


def _keep_proposed(session: Session, trials: Sequence[Trial]) -> None:
    shown = read_shown(session.folder) or Shown()
    if set(shown.sizes) >= {str(trial.number) for trial in trials}:
        return
    session.reporter.emit(StageStarted("Replies of the proposed trials, for the report"))
    replies = _whole_replies(session, trials) if session.settings.keep_replies else ()
    saved = {str(one.trial) for one in shown.exports}
    sizes = {number: found for number, found in shown.sizes.items() if number in saved}
    for trial in trials:
        sizes[str(trial.number)] = edit_sizes(session.model, trial.plan, session.directions)
    write_shown(session.folder, replace(shown.with_replies(replies), sizes=sizes))
    session.reporter.emit(StageFinished())


def _whole_replies(session: Session, trials: Sequence[Trial]) -> list[ReplySet]:
    """Replies of the original and of trials, at the search's length, to their ends."""
    evaluation, model = session.prompts.evaluation, session.model
    sets = {"bad": evaluation.bad, "good": evaluation.good}
    sets = {name: rows[: REPLIED[name]] for name, rows in sets.items() if rows}
    tokens = session.settings.max_response_length
    session.evaluator.release()  # so that only one cache has to fit into memory
    engine = open_engine(model, sets, replied=set(sets), max_new_tokens=tokens)
    edits = [{}, *(model.plan_edits(trial.plan, session.directions) for trial in trials)]
    names = [ORIGINAL, *(str(trial.number) for trial in trials)]
    judged = detector_version(session.evaluator.scorers) is not None
    found = []
    for name, prompts in sets.items():
        texts = engine.replies(name, edits)
        whole = {one: [text or "" for text in rows] for one, rows in zip(names, texts, strict=True)}
        found.append(_reply_set(name, tokens, prompts, whole, judged))
    return found


def _reply_set(
    name: str,
    tokens: int,
    prompts: Sequence[Prompt],
    texts: dict[str, list[str]],
    judged: bool,
) -> ReplySet:
    replies = {
        model: tuple(
            judged_reply(text, prompt.user) if judged else Reply(text)
            for text, prompt in zip(rows, prompts, strict=True)
        )
        for model, rows in texts.items()
    }
    asked = tuple(Asked(one.user, one.system, one.category) for one in prompts)
    return ReplySet(name, tokens, VERSION, asked, replies)


def judged_reply(text: str, prompt: str) -> Reply:
    """A reply, and what the refusal detector calls it."""
    found = classify(text, prompt)
    span = None if found.span is None else (found.span.start, found.span.end)
    return Reply(text, found.label, span)


def edit_sizes(model: Model, plan: Plan, directions: Tensor) -> tuple[ModuleSize, ...]:
    """How much a plan changes each module that it edits, |dW| / |W| by Frobenius norms.

    The original weights must be in place. Experts of a layer count as one module.

    Args:
        directions: float32 [layers + 1, (k,) hidden].
    """
    edits = model.plan_edits(plan, directions)
    sums: dict[tuple[int, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for writer in model.writers:
        edit = edits.get(writer.name)
        if edit is None:
            continue
        total = sums[writer.layer, writer.component]
        try:
            weight = writer.weight()
        except ModelError:
            total[:] = math.nan, math.nan
            continue
        total[0] += _squared(edit, weight)
        total[1] += float(weight.square().sum())
    return tuple(
        ModuleSize(layer, component, _relative(change, whole))
        for (layer, component), (change, whole) in sorted(sums.items())
    )


def _squared(edit: OutputEdit, weight: Tensor) -> float:
    """Squared Frobenius norm of the change of a weight."""
    if edit.scale is not None:
        return float((edit.edited_weight(weight) - weight).square().sum())
    # |U^T A|^2 = trace(U U^T A A^T), of matrices as small as the rank.
    read = edit.read.to(weight) @ weight
    write = edit.write.to(weight)
    return float(((write @ write.mT) * (read @ read.mT)).sum())


def _relative(change: float, whole: float) -> float | None:
    if not math.isfinite(change) or not whole > 0:
        return None
    return math.sqrt(max(change, 0.0) / whole)


# --- exports -------------------------------------------------------------------------------


class LongReplySets:
    """Collects the long replies that are read while a chosen trial is scored."""

    def __init__(self, session: Session, trial: Trial) -> None:
        self._session, self._trial = session, trial
        self.sets: list[ReplySet] = []

    def __call__(self, tokens: int, before: Outputs, after: Outputs) -> None:
        """Take the outputs of the original and of the trial on the same prompts."""
        judged = detector_version(self._session.evaluator.scorers) is not None
        if tokens <= self._session.settings.max_response_length:
            return  # whole replies of that length are kept of all proposed trials
        for name in sorted(set(before.responses) & set(after.responses)):
            most = REPLIED.get(name, LEAST_REPLIED)
            texts = {
                ORIGINAL: list(before.responses[name])[:most],
                str(self._trial.number): list(after.responses[name])[:most],
            }
            asked = before.prompts[name][:most]
            self.sets.append(_reply_set(name, tokens, asked, texts, judged))


def keep_export(
    session: Session,
    trial: Trial,
    place: tuple[str, str],
    scores: tuple[tuple[Score, ...], HeldOut | None, LongReplies | None],
    replies: Sequence[ReplySet],
) -> None:
    """Keep the scores of a saved trial, and its long replies; a failure is only a warning.

    Args:
        place: Folder or repository, and strategy of the export.
        scores: From disk, on held-out prompts, on long replies.
    """
    saved, held_out, long = scores
    rows = {ORIGINAL: session.evaluator.baseline, "in the search": trial.scores}
    rows |= {"from disk": saved} if saved else {}
    if held_out is not None:
        rows |= {"original, held out": held_out.before, "held out": held_out.after}
    found = Exported(
        trial=trial.number,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        strategy=place[1],
        folder=place[0],
        rows=rows,
        long={} if long is None else {ORIGINAL: long.before, "edited": long.after},
        tokens=None if long is None else long.tokens,
        compared=max(1, session.study.completed),
    )
    with _only_warned("this export", session.reporter):
        shown = read_shown(session.folder) or Shown()
        if session.settings.keep_replies:
            shown = shown.with_replies(replies)
        sizes = dict(shown.sizes)
        if str(trial.number) not in sizes and session.model.is_original:
            sizes[str(trial.number)] = edit_sizes(session.model, trial.plan, session.directions)
        exports = (*shown.exports, found)
        write_shown(session.folder, replace(shown, exports=exports, sizes=sizes))
