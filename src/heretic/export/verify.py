"""Reload a saved model from disk, and check that it scores as in the search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from heretic.errors import ExportError
from heretic.events import Notice, Reporter, Silent, StageFinished, StageStarted
from heretic.export.documents.write import rewrite_scores
from heretic.export.request import ExportRequest, FullPrecision, LongReplies, Repacked
from heretic.records.trial import Score
from heretic.system.adapters import find_adapter

if TYPE_CHECKING:
    import torch

    from heretic.model.core import Model

DIVERGENCE_ABSOLUTE, DIVERGENCE_RELATIVE = 0.01, 0.05
RATE = 0.03
"""Tolerances: KL within max(0.01 nats, 5%), refusals within 3 of 100. An edit applied while running
and the same edit of the weights differ by rounding in half precision."""

ROOM = 1.25
"""Free memory that a second model needs, as a multiple of its weights; batches need the rest."""


class ModelScorer(Protocol):
    """The part of `heretic.evaluator.evaluator.Evaluator` that verification uses."""

    model: Model

    @property
    def baseline(self) -> tuple[Score, ...]:
        """Scores of the unedited model."""

    @property
    def replies_read(self) -> Mapping[str, int]:
        """Number of replies behind each score that rests on replies, by its name."""

    def score_model(self, other: Model) -> tuple[Score, ...]:
        """Scores of another model against the unedited one."""


def verify(
    folder: Path,
    request: ExportRequest,
    evaluator: ModelScorer,
    reporter: Reporter | None = None,
    *,
    measure_full: Callable[[Path], FullPrecision | None] | None = None,
    measure_long: Callable[[Model], LongReplies | None] = lambda _: None,
    measure_packed: Callable[[Model], Repacked | None] = lambda _: None,
) -> ExportRequest:
    """Reload a saved model from disk, score it, and put the figures on its card.

    Args:
        folder: The folder that `save` wrote from the same `request`.
        measure_long: Scores the reloaded model on long replies, and adds that to the request's.
        measure_full: Scores the folder in full precision, if the search ran on a quantised model.
            The edited weights are then rounded anew, so scores may differ from the search's by as
            much as quantisation moves those of the original.
        measure_packed: Compares the reloaded model with the edited one in memory, if the base's
            weights are packed. The edited weights were rounded to be packed, so that scores that
            differ are an error only if the rounding has moved the model further than the edit.

    Returns:
        The request with the scores of the reloaded model.

    Raises:
        ExportError: A score is not finite, or differs from the search's beyond tolerance. The files
            stay; in the second case their card shows the scores that were measured on them.
    """
    reporter = reporter or Silent()
    baseline = evaluator.baseline  # measured before the unedited model may be moved
    scores, long, packed = _scored(folder, evaluator, reporter, measure_long, measure_packed)
    full = None if measure_full is None else measure_full(folder)
    measured = replace(
        request,
        baseline=baseline,
        verified=scores,
        full_precision=full,
        repacked=packed,
        long_replies=long or request.long_replies,
    )
    rewrite_scores(folder, measured)
    problems = disagreements(
        request.trial.scores, scores, evaluator.replies_read, {} if full is None else full.changes()
    )
    why = None
    if measure_full is not None and full is None:
        why = "Whether quantisation alone is the cause cannot be told."
    elif packed is not None and packed.rounding <= packed.edit:
        why = f"Its weights are rounded to be packed ({packed.label})."
    if problems and why is not None:
        reporter.emit(
            Notice(
                f"The model saved in {folder} does not score as in the search: "
                f"{'; '.join(problems)}. {why}",
                "warning",
            )
        )
    elif problems:
        raise ExportError(
            f"The model saved in {folder} does not score as in the search: {'; '.join(problems)}.",
            remedy="Its card shows the figures of the files; do not rely on the search's.",
        )
    return measured


def _scored(
    folder: Path,
    evaluator: ModelScorer,
    reporter: Reporter,
    measure_long: Callable[[Model], LongReplies | None],
    measure_packed: Callable[[Model], Repacked | None],
) -> tuple[tuple[Score, ...], LongReplies | None, Repacked | None]:
    """Scores of the saved model as in the search and on long replies, and what packing changed.

    Raises:
        ExportError: A score is not finite.
    """
    reporter.emit(StageStarted("Checking the saved model"))
    with _room_for_copy(evaluator.model):
        reloaded = reload(folder, evaluator.model, reporter)
        try:
            scores = evaluator.score_model(reloaded)
            wrong = [score.name for score in scores if not score.is_sound]
            if wrong:
                raise ExportError(
                    f"The model saved in {folder} has scores that are not finite: "
                    f"{', '.join(wrong)}.",
                    remedy="Do not use it; try another trial or dtype.",
                )
            reporter.emit(StageFinished(", ".join(f"{s.name} {s.display}" for s in scores)))
            return scores, measure_long(reloaded), measure_packed(reloaded)
        finally:
            del reloaded
            _free_memory()


def reload(folder: Path, like: Model, reporter: Reporter | None = None) -> Model:
    """Load a saved model or adapter in the way that the search loaded its base.

    Args:
        like: The base model in memory, whose dtype, batch size, response prefix and date are used.
    """
    from heretic.model.adapters import attached
    from heretic.model.core import Model as Loader

    options = replace(
        like.options,
        dtypes=(str(like.dtype).removeprefix("torch."),),
        batch_size=like.batch_size,
    )
    adapter = find_adapter(str(folder.absolute()))
    if adapter is None:
        options = replace(options, model=str(folder), model_commit=None)
    loaded = Loader(options, reporter)
    if adapter is not None:
        attached(loaded.model, adapter)
    loaded.response_prefix = like.response_prefix
    loaded.renderer.date = like.renderer.date
    return loaded


@contextmanager
def _room_for_copy(base: Model) -> Iterator[None]:
    """Move the base model to the CPU during the block if its accelerator has no room for a copy.

    Models that are spread over devices or quantised cannot be moved; they stay.
    """
    device, model = base.device, base.model
    spread = len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    fixed = device.type != "cuda" or spread or base.options.quantization != "none"
    if fixed or _free_bytes(device) > size * ROOM:
        yield
        return
    model.to("cpu")
    _free_memory()
    try:
        yield
    finally:
        model.to(device)


def _free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device, in bytes."""
    import torch

    _free_memory()
    return int(torch.cuda.mem_get_info(device)[0])


def _free_memory() -> None:
    from heretic.system.machine import free_memory

    free_memory()


def disagreements(
    searched: tuple[Score, ...],
    measured: tuple[Score, ...],
    replies: Mapping[str, int],
    allowed: Mapping[str, float] | None = None,
) -> list[str]:
    """Scores that differ beyond tolerance, in words; a score that one side lacks is left out.

    Args:
        replies: Number of replies behind each score that rests on replies, by its name.
        allowed: Further differences that have another cause, by the score's name.
    """
    more = allowed or {}
    before = {score.name: score for score in searched}
    return [
        f"{score.name} was {before[score.name].display} and is {score.display}"
        for score in measured
        if score.name in before
        and not agree(
            before[score.name], score, replies.get(score.name, 0), more.get(score.name, 0.0)
        )
    ]


def agree(searched: Score, measured: Score, replies: int = 0, allowed: float = 0.0) -> bool:
    """Whether two measurements of one score agree up to rounding in the model's dtype.

    Args:
        replies: Number of replies that the score rests on; 0 if it rests on other outputs.
        allowed: A further difference that has another cause.
    """
    if searched.value == measured.value or searched.withheld or measured.withheld:
        return True  # a withheld figure says nothing that could differ
    if searched.detector != measured.detector:
        return True  # a run of an earlier release, whose replies were judged by other rules
    # Written so that a NaN on either side never agrees.
    most = tolerance(searched, measured, replies) + allowed + 1e-9
    return abs(searched.value - measured.value) <= most


def tolerance(searched: Score, measured: Score, replies: int) -> float:
    """The largest difference that rounding explains.

    Rounding may turn a reply into another one. Therefore 3 of 100 replies, or one where there are
    few, may have any value among those that were measured; the same holds for yes and no by other
    outputs. All other scores have the tolerance of a divergence.
    """
    known = bool(searched.values and measured.values)  # runs of earlier releases kept no values
    values = (*searched.values, *measured.values)
    yes_or_no = known and set(values) <= {0.0, 1.0}
    count = len(measured.values) if yes_or_no else replies
    if not count:
        return max(DIVERGENCE_ABSOLUTE, DIVERGENCE_RELATIVE * abs(searched.value))
    return max(RATE, 1 / count) * (max(values) - min(values) if known else 1.0)
