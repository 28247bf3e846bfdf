"""Is what lies on the disk what the search promised? Reload it and score it once more."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from heretic.errors import ExportError
from heretic.events import Reporter, Silent, StageFinished, StageStarted
from heretic.export.adapter import ADAPTER_CONFIG, attach_adapter
from heretic.export.documents.write import rewrite_scores
from heretic.export.request import ExportRequest
from heretic.records.trial import Score

if TYPE_CHECKING:
    import torch

    from heretic.config.settings import Settings
    from heretic.model.core import Model

DIVERGENCE_ABSOLUTE, DIVERGENCE_RELATIVE = 0.01, 0.05
RATE = 0.03
"""Tolerances: KL within max(0.01 nats, 5%), refusals within 3 of 100. Edited while running and
edited in the weights differ by rounding in half precision."""

ROOM = 1.25
"""Free memory that a second model needs, in its own sizes: weights, and the batches' states."""

_COUNT = re.compile(r"\s*\d+\s*/\s*(\d+)\s*")


class ModelScorer(Protocol):
    """What verification needs of an evaluator: `heretic.evaluator.evaluator.Evaluator` has it."""

    model: Model

    @property
    def baseline(self) -> tuple[Score, ...]:
        """Scores of the unedited model."""

    def score_model(self, other: Model) -> tuple[Score, ...]:
        """Scores of another model against the unedited one."""


def verify(
    folder: Path, request: ExportRequest, evaluator: ModelScorer, reporter: Reporter | None = None
) -> tuple[Score, ...]:
    """Reload a saved model from disk, score it, and put the figures on its card.

    Args:
        folder: What `save` wrote from the same `request`.

    Returns:
        The scores of the reloaded model.

    Raises:
        ExportError: They differ from the search's beyond tolerance. The files stay, and their card
            shows the figures that were measured on them.
    """
    reporter = reporter or Silent()
    reporter.emit(StageStarted("Checking the saved model"))
    baseline = evaluator.baseline  # measured while the unedited model is in its place
    with _room_for_copy(evaluator.model):
        reloaded = reload(folder, evaluator.model, reporter)
        try:
            scores = evaluator.score_model(reloaded)
        finally:
            del reloaded
            _free_memory()
    wrong = [score.name for score in scores if not math.isfinite(score.value)]
    if wrong:
        raise ExportError(
            f"The model saved in {folder} gives no finite {', '.join(wrong)}.",
            remedy="Do not use it; try another trial or dtype.",
        )
    rewrite_scores(folder, replace(request, baseline=baseline, verified=scores))
    problems = disagreements(request.trial.scores, scores)
    if problems:
        raise ExportError(
            f"The model saved in {folder} does not score as in the search: {'; '.join(problems)}.",
            remedy="Its card shows the figures of the files; do not rely on the search's.",
        )
    reporter.emit(StageFinished(", ".join(f"{s.name} {s.display}" for s in scores)))
    return scores


def reload(folder: Path, like: Model, reporter: Reporter | None = None) -> Model:
    """Load a saved model or adapter as the search had loaded its base.

    Args:
        like: The base model in memory; its dtype, batch size and response prefix are taken over.
    """
    from heretic.model.core import Model as Loader

    pinned = {
        "dtypes": (str(like.dtype).removeprefix("torch."),),
        "batch_size": like.batch_size,
    }
    settings: Settings = like.settings.model_copy(update=pinned)
    is_adapter = (folder / ADAPTER_CONFIG).exists()
    if not is_adapter:
        place = {"model": str(folder), "model_commit": None, "quantization": "none"}
        settings = settings.model_copy(update=place)
    loaded = Loader(settings, reporter)
    if is_adapter:
        attach_adapter(loaded, folder)
    loaded.response_prefix = like.response_prefix
    return loaded


@contextmanager
def _room_for_copy(base: Model) -> Iterator[None]:
    """Move the base model to the CPU for the time if its accelerator has no room for another.

    Models that are spread over devices or quantised cannot be moved; they stay.
    """
    device, model = base.device, base.model
    spread = len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    fixed = device.type != "cuda" or spread or base.settings.quantization != "none"
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
    """Free memory of a CUDA device."""
    import torch

    _free_memory()
    return int(torch.cuda.mem_get_info(device)[0])


def _free_memory() -> None:
    from heretic.system.machine import free_memory

    free_memory()


def disagreements(searched: tuple[Score, ...], measured: tuple[Score, ...]) -> list[str]:
    """Scores that differ beyond tolerance, in words; scores that only one side has are left out."""
    before = {score.name: score for score in searched}
    return [
        f"{score.name} was {before[score.name].display} and is {score.display}"
        for score in measured
        if score.name in before and not agree(before[score.name], score)
    ]


def agree(searched: Score, measured: Score) -> bool:
    """Whether two figures of one score are the same up to rounding in the model's dtype."""
    if searched.value == measured.value:
        return True
    # Written so that a NaN on either side never agrees.
    return abs(searched.value - measured.value) <= tolerance(searched) + 1e-9


def tolerance(score: Score) -> float:
    """The largest difference that rounding explains.

    Rates shown as `n/m` may differ by 3 of 100, and by one prompt of sets that small; anything else
    counts as a divergence.
    """
    count = _COUNT.fullmatch(score.display)
    if count is not None and int(count[1]) > 0:
        return max(RATE, 1 / int(count[1]))
    return max(DIVERGENCE_ABSOLUTE, DIVERGENCE_RELATIVE * abs(score.value))
