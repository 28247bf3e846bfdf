"""Single stages: load the model, choose the response prefix, compute directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from heretic.config.presets import applied
from heretic.config.settings import Settings
from heretic.errors import StudyError
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.method.directions import (
    cluster_basis,
    difference_directions,
    geometric_median,
    lengths_along,
    sparing_directions,
    winsorize,
)
from heretic.model.adapters import attached
from heretic.model.core import Model
from heretic.model.experts import check_variant
from heretic.model.library import LibraryModel
from heretic.model.prefix import find_response_prefix
from heretic.model.reading import Prompts
from heretic.model.rendering import check_prompts
from heretic.prompts import Prompt, PromptSets
from heretic.records.plan import RowNormalization
from heretic.records.trial import Score
from heretic.refusals import stance
from heretic.system.adapters import find_adapter
from heretic.system.machine import accelerator, device_name

PREFIX_PROMPTS = 100
"""Prompts of each direction split whose replies are compared for a shared prefix."""


def load_model(
    settings: Settings, reporter: Reporter, dtypes: Sequence[str] | None = None
) -> LibraryModel:
    """Load the model and report what was found.

    Args:
        dtypes: Dtypes to try instead of the setting's, if it is known which one works.
    """
    device = accelerator()
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if device.type == "cpu" else ""
    reporter.emit(Notice(f"Device: {device_name(device)}{threads}"))
    preset = applied(settings)
    if preset is not None:
        reporter.emit(Notice(preset.line()))
    if settings.behavior:
        reporter.emit(Notice(f"Behavior: {settings.behavior}"))
    reporter.emit(StageStarted(f"Loading {settings.model}"))
    model = LibraryModel(settings if dtypes is None else settings.replaced(dtypes=dtypes), reporter)
    gigabytes = sum(p.numel() * p.element_size() for p in model.model.parameters()) / 1e9
    reporter.emit(
        StageFinished(
            f"{model.n_layers} layers, {str(model.dtype).removeprefix('torch.')}, "
            f"{gigabytes:.2f} GB; edits {' and '.join(model.get_abliterable_components())}; "
            f"batch size {model.batch_size}"
        )
    )
    for remark in model.remarks:
        reporter.emit(Notice(remark))
    if model.structure.discovered:
        found = ", ".join(model.structure.discoveries())
        reporter.emit(Notice(f"Writers with unknown names, found by their outputs: {found}"))
    if not model.renderer.has_template:
        reporter.emit(Notice("The model has no chat template: it gets prompts as plain text"))
    return model


def check_rendering(model: Model, prompts: PromptSets, reporter: Reporter) -> None:
    """Check that the model gets the prompts, before anything is computed from them.

    Raises:
        ModelError: A token has no embedding.
        PromptError: See `heretic.model.rendering.check_prompts`; or a prompt has more tokens than
            the model has positions.
    """
    sets = {"good": prompts.good, "bad": prompts.bad, "protected": prompts.protected}
    sets |= {"spared": prompts.spared}
    for prefix, evaluation in (("", prompts.evaluation), ("held out ", prompts.held_out)):
        if evaluation is not None:
            rows = evaluation.by_name()
            sets |= {f"{prefix}evaluation {name}": rows[name] for name in rows}
            model.encode_rows(evaluation.good)  # raises what `check_prompts` does not look at
            model.encode_rows(evaluation.bad, model.options.max_response_length)
    for name in ("good", "bad", "protected"):
        model.encode_rows(sets[name])
    model.encode_rows(prompts.spared, model.options.max_response_length)
    for warning in check_prompts(model, sets):
        reporter.emit(Notice(warning, "warning"))


def load_judged(settings: Settings, reporter: Reporter) -> LibraryModel:
    """Load a model that is not edited: an adapter may then lie on a quantised base.

    Raises:
        ModelError: The model cannot be loaded, or the adapter does not fit its base.
    """
    adapter = find_adapter(settings.model, settings.model_commit)
    if adapter is None or settings.quantization == "none":
        return load_model(settings, reporter)
    changes = {"model": adapter.base, "model_commit": adapter.base_revision}
    model = load_model(settings.replaced(**changes), reporter)
    attached(model.model, adapter)
    reporter.emit(Notice(f"{adapter.place} is an adapter: it lies on its base, {adapter.base}"))
    return model


def choose_prefix(
    settings: Settings, model: Model, prompts: PromptSets, reporter: Reporter
) -> None:
    """Unless the settings give a response prefix, set the model's to what replies begin with.

    A warning says where it settles already whether a reply declines.
    """
    if settings.response_prefix == "auto":
        _find_prefix(settings, model, prompts, reporter)
    told = _told_of_stance(model.response_prefix)
    if told is not None:
        reporter.emit(Notice(told, level="warning"))


def _told_of_stance(prefix: str) -> str | None:
    """One sentence on a response prefix that declines or complies; None for any other."""
    already = stance(prefix)
    if already is None:
        return None
    return (
        f"The response prefix {prefix!r} already {already}, and every reply is made to begin with "
        "it: what the model would say in its place is not counted. Set response_prefix to empty "
        'text (--response-prefix "") to count it.'
    )


def _find_prefix(settings: Settings, model: Model, prompts: PromptSets, reporter: Reporter) -> None:
    """Set the model's response prefix to what its replies begin with."""
    sample = [*prompts.good[:PREFIX_PROMPTS], *prompts.bad[:PREFIX_PROMPTS]]
    reporter.emit(StageStarted("Looking for a response prefix", total=len(sample)))
    model.response_prefix = find_response_prefix(model, sample, settings.chain_of_thought_skips)
    found = model.response_prefix
    reporter.emit(StageFinished(repr(found) if found else "replies have no common prefix"))


class Observer(Protocol):
    """Sees what directions are computed from."""

    def residuals(self, name: str, prompts: Prompts, residuals: Tensor) -> None:
        """Take some prompts of a set and their residuals, float32 [prompts, layers + 1, hidden]."""

    def lengths(self, lengths: Tensor) -> None:
        """Take the lengths of the differences along the first directions, float64 [layers + 1]."""


def compute_directions(
    settings: Settings,
    model: Model,
    prompts: PromptSets,
    reporter: Reporter,
    observer: Observer | None = None,
) -> Tensor:
    """Compute directions from the direction splits, float32 [layers + 1, hidden].

    If plans may remove several directions from a layer, the shape is [layers + 1, k, hidden]: the
    direction of the bad prompts, that of the protected prompts if there are any, and those of
    groups of bad prompts.

    Args:
        observer: Sees residuals and lengths.

    Raises:
        StudyError: Two of the sets have the same residuals in every layer.
    """
    sets = {"good": prompts.good, "bad": prompts.bad, "protected": prompts.protected}
    centers = {}
    for name, rows in sets.items():
        if rows:
            reporter.emit(StageStarted(f"Residuals of the {name} prompts", total=len(rows)))
            told = None if observer is None else partial(observer.residuals, name)
            centers[name] = _center(settings, model, rows, told)
            reporter.emit(StageFinished())
    good = centers.pop("good")
    found = {
        name: difference_directions(good, center, orthogonalize=settings.orthogonalize_direction)
        for name, center in centers.items()
    }
    directions = found["bad"].unsqueeze(1)
    if prompts.protected:
        directions = sparing_directions(found["bad"], found["protected"])
    if not directions[:, 0].any():
        others = "protected" if found["bad"].any() else "good"
        raise StudyError(
            f"The {others} and the bad prompts leave the same residuals in every layer.",
            remedy="Check that the two prompt sets differ in what triggers the behaviour.",
        )
    if observer is not None:
        observer.lengths(lengths_along(directions[:, 0], good, centers["bad"]))
    if settings.max_rank == 1:
        return directions[:, 0]
    if settings.max_rank <= directions.shape[1]:
        return directions
    reporter.emit(StageStarted("Groups of the bad prompts", total=len(prompts.bad)))
    bad = winsorize(model.get_residuals_batched(prompts.bad), settings.winsorization_quantile)
    basis = cluster_basis(
        directions,
        good,
        bad,
        rank=settings.max_rank,
        orthogonalize=settings.orthogonalize_direction,
        seed=0,
    )
    reporter.emit(StageFinished(f"{settings.max_rank} directions per layer"))
    return basis


def _center(
    settings: Settings,
    model: Model,
    rows: Sequence[Prompt],
    seen: Callable[[Prompts, Tensor], None] | None,
) -> Tensor:
    """Mean or geometric median of the residuals, float64 [layers + 1, hidden]."""
    if settings.direction_method == "mean":
        return model.get_residual_means(rows, settings.winsorization_quantile, seen)
    residuals = model.get_residuals_batched(rows)
    if seen is not None:
        seen(rows, residuals)
    return geometric_median(winsorize(residuals, settings.winsorization_quantile))


def model_and_directions(
    settings: Settings,
    prompts: PromptSets,
    reporter: Reporter,
    *,
    variant: RowNormalization | None = None,
    date: datetime | None = None,
    observer: Observer | None = None,
) -> tuple[LibraryModel, Tensor]:
    """The model with its response prefix, and directions from the prompts.

    Args:
        variant: Row normalization of the edit; by default that of the settings.
        date: What chat templates are told when they ask for the time; by default it is now.
        observer: As in `compute_directions`.

    Raises:
        ModelError: The model cannot be loaded, or edited with this row normalization.
        StudyError: Two of the prompt sets have the same residuals in every layer.
    """
    model = load_model(settings, reporter)
    model.renderer.date = date or model.renderer.date
    check_variant(model.writers, variant or settings.row_normalization)
    check_rendering(model, prompts, reporter)
    choose_prefix(settings, model, prompts, reporter)
    return model, compute_directions(settings, model, prompts, reporter, observer)


def scores_line(scores: Sequence[Score]) -> str:
    """Names and display texts of scores in one line."""
    return ", ".join(f"{score.name} {score.display}" for score in scores)
