"""The model and the directions of a run: computed when it begins, as they were when it goes on."""

from __future__ import annotations

import torch
from torch import Tensor

from heretic.config.settings import Settings
from heretic.errors import RunError
from heretic.events import Notice, Reporter
from heretic.method.fits import Fit
from heretic.model.core import Model
from heretic.model.fits import parse_fit
from heretic.model.library import LibraryModel
from heretic.pipeline.shown import ResidualSample, keep_geometry
from heretic.pipeline.stages import (
    check_rendering,
    compute_directions,
    load_model,
    model_and_directions,
)
from heretic.prompts import PromptSets
from heretic.records import parse
from heretic.records.plan import fit_file
from heretic.runs.folder import RunFolder
from heretic.runs.manifest import RunManifest


def model_of_run(
    settings: Settings,
    prompts: PromptSets,
    folder: RunFolder,
    known: RunManifest | None,
    reporter: Reporter,
) -> tuple[LibraryModel, Tensor]:
    """The model and the directions of a run, which a new run saves.

    Args:
        known: The manifest of the run, if it goes on.

    Raises:
        RunError: The directions are damaged, and come out differently when they are computed again.
        HereticError: As `load_model` and `compute_directions`.
    """
    if known is not None:
        model = _searched_model(settings, known, reporter)
        model.add_fits(_fits_of(folder))
        check_rendering(model, prompts, reporter)
        return model, _directions_of(settings, prompts, folder, known, model, reporter)
    folder.discard()  # files of a run that was discarded, or never began
    sample = ResidualSample(prompts)
    model, directions = model_and_directions(settings, prompts, reporter, observer=sample)
    folder.save_directions(directions.numpy())
    keep_geometry(folder, sample, reporter)
    return model, directions


def load_run(
    settings: Settings, folder: RunFolder, manifest: RunManifest, reporter: Reporter
) -> tuple[LibraryModel, Tensor]:
    """Load the model as it was searched in a run, and the run's directions, without prompts.

    Raises:
        RunError: The directions are damaged or belong to another model.
    """
    folder.load_directions()  # so that damage is reported early
    fits = _fits_of(folder)
    model = _searched_model(settings, manifest, reporter)
    model.add_fits(fits)
    return model, _kept_directions(folder, model)


def _fits_of(folder: RunFolder) -> list[Fit]:
    """The fits of a run.

    Raises:
        RunError: A file is damaged or gone.
    """
    return [
        parse_fit(content, folder.path / fit_file(digest), digest)
        for digest, content in folder.read_fits().items()
    ]


def _searched_model(settings: Settings, manifest: RunManifest, reporter: Reporter) -> LibraryModel:
    """Load the model as it was searched.

    Raises:
        RunError: The manifest does not say how.
    """
    dtype = manifest.recorded("dtype", parse.text)
    prefix = manifest.recorded("response_prefix", parse.text)
    batch_size = manifest.recorded("batch_size", parse.whole)
    if not manifest.has_checksums:
        reporter.emit(
            Notice(
                "This run is of an earlier release, which kept no checksums: its files are taken "
                "as they are."
            )
        )
    model = load_model(settings, reporter, dtypes=[dtype])
    model.response_prefix = prefix
    model.renderer.date = manifest.date or model.renderer.date
    model.take_up(batch_size)
    return model


def _kept_directions(folder: RunFolder, model: Model) -> Tensor:
    """The directions of a run, for its model.

    Raises:
        RunError: They are damaged or belong to another model.
    """
    directions = torch.from_numpy(folder.load_directions())
    # Several directions of a layer lie along a dimension between these two.
    if (directions.shape[0], directions.shape[-1]) != (model.n_layers + 1, model.hidden_size):
        raise RunError(
            f"{folder.path} holds directions of another model: shape {tuple(directions.shape)}.",
            remedy="Set checkpoint_action to restart.",
        )
    return directions


def _directions_of(
    settings: Settings,
    prompts: PromptSets,
    folder: RunFolder,
    known: RunManifest,
    model: Model,
    reporter: Reporter,
) -> Tensor:
    """The directions of a run; if their file is damaged, computed again to the same bytes.

    Raises:
        RunError: They are damaged, and come out differently.
    """
    try:
        return _kept_directions(folder, model)
    except RunError as error:
        if not known.has_checksums:
            raise
        reporter.emit(Notice(f"{error.message} They are computed again.", level="warning"))
        directions = compute_directions(settings, model, prompts, reporter)
        if not folder.had_directions(directions.numpy()):
            raise
        folder.save_directions(directions.numpy())
        return directions
