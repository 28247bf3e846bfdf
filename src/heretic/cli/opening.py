"""Opening a run for a command: checks, lock, log, settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from heretic.cli.display.log import logging_to
from heretic.cli.display.reporter import Display, Tee, make_reporter
from heretic.cli.menu.answers import program_arguments
from heretic.cli.menu.benchmarks import check_benchmarks
from heretic.cli.menu.checkpoint import choose_checkpoint
from heretic.records.trial import Score, Trial
from heretic.records.trial import front as front_of
from heretic.runs.manifest import RunManifest

if TYPE_CHECKING:
    from heretic.cli.options import SettingsOptions
    from heretic.config.settings import Settings
    from heretic.pipeline.prompts import PromptSets
    from heretic.pipeline.run import Session
    from heretic.runs.folder import RunFolder


_SAVING = (None, "save")
"""Values of `model_action` with which `save_directory` may be written to."""


_CONSENT = {"trust_remote_code", "benchmark_path"}
"""Settings by which code of others runs."""


_PLACES = {"model", "model_commit"} | {
    f"{kind}{split}_prompts" for kind in ("good", "bad") for split in ("", "_evaluation")
}
"""Settings of a run that may name another place, as long as the same is found there."""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run folder that this process holds, with where to show progress."""

    folder: RunFolder
    seed: int
    prompts: PromptSets
    display: Display
    reporter: Tee


@contextmanager
def held_run(settings: Settings, console: Console) -> Iterator[OpenRun]:
    """Lock the run folder of these settings, log into it, and show progress.

    Raises:
        HereticError: As `check_before_work`; or the prompts cannot be read, or the run is in use.
    """
    from heretic import pipeline

    check_before_work(settings)
    with make_reporter(console) as display:
        prompts = pipeline.load_prompts(settings, display)
        folder, seed = pipeline.open_folder(settings, prompts)
        with folder.lock(), logging_to(folder.log_path) as log:
            yield OpenRun(folder, seed, prompts, display, Tee(display, log))


def prepared(settings: Settings, place: OpenRun, console: Console) -> Session:
    """A session in the place, after what research settings ask to see."""
    from heretic import export, pipeline
    from heretic.cli.display.research import show_residuals

    session = pipeline.prepare(settings, place.prompts, place.folder, place.seed, place.reporter)
    if settings.model_action in _SAVING and settings.save_directory is not None:
        strategy = settings.export_strategy or "merge"
        export.check_export(session.model, settings.save_directory, strategy)
    show_residuals(session, console, place.display)
    return session


def check_before_work(settings: Settings) -> None:
    """Say before any work what would stop the run at its end.

    Raises:
        SettingsError: A benchmark does not exist.
        ExportError: The destination is taken, its disk too small, the repository's name malformed,
            or nobody is logged in.
        HereticError: A package that research output needs is missing.
    """
    from heretic import export
    from heretic.cli.display.research import check_research

    check_benchmarks(settings)
    if settings.model_action in _SAVING and settings.save_directory is not None:
        strategy = settings.export_strategy or "merge"
        export.check_place(settings, settings.save_directory, strategy)
    if settings.model_action == "upload" and settings.upload_repo_id is not None:
        export.check_upload(settings.upload_repo_id)
    check_research(settings)


def go_on_or_not(settings: Settings, place: OpenRun, console: Console) -> bool:
    """Settle what happens to a run that is there already; False if the user wants to quit."""
    manifest = place.folder.read_manifest()
    if manifest is None:
        return True
    trials = place.folder.read_trials()
    action = choose_checkpoint(
        settings,
        console=console,
        model=settings.model,
        argv=program_arguments(),
        completed=sum(trial.state == "complete" for trial in trials),
        n_trials=settings.n_trials,
        front=front_of(trials),
        baseline=baseline_of(manifest),
    )
    if action == "restart":
        place.folder.discard()
    return action != "quit"


def baseline_of(manifest: RunManifest) -> tuple[Score, ...]:
    """The recorded scores of the unedited model."""
    return tuple(Score.from_dict(row) for row in manifest.found.get("baseline", ()))


@contextmanager
def reopened_run(
    path: Path, options: SettingsOptions, console: Console, *, trust_plugins: bool
) -> Iterator[tuple[Settings, OpenRun]]:
    """Hold a run folder that exists, with the settings it was made with.

    Args:
        trust_plugins: Whether scorers from outside Heretic may be named by the run.

    Raises:
        HereticError: As `known_run`, `run_settings` and `check_before_work`; or the run names a
            foreign scorer, or its prompts have changed.
    """
    from heretic import pipeline
    from heretic.errors import RunError
    from heretic.export.reproduce import check_plugins

    folder, manifest = known_run(path)
    check_plugins(manifest.settings, "run", trust_plugins)
    settings = run_settings(manifest, options)
    check_before_work(settings)
    with make_reporter(console) as display:
        prompts = pipeline.load_prompts(settings, display)
        if pipeline.fingerprint(settings, prompts)["prompts"] != manifest.fingerprint.get(
            "prompts"
        ):
            raise RunError(
                f"The prompts have changed since the run in {path} was searched.",
                remedy="Bring the old ones back, or search again.",
            )
        with folder.lock(), logging_to(folder.log_path) as log:
            yield settings, OpenRun(folder, manifest.seed, prompts, display, Tee(display, log))


def known_run(path: Path) -> tuple[RunFolder, RunManifest]:
    """A run folder and what it says about itself.

    Raises:
        RunError: The folder holds no run, or a damaged one.
    """
    from heretic.errors import RunError
    from heretic.runs.folder import RunFolder

    folder = RunFolder(path)
    manifest = folder.read_manifest()
    if manifest is None:
        raise RunError(f"{path} holds no run.", remedy="`heretic runs` lists those there are.")
    return folder, manifest


def run_settings(manifest: RunManifest, options: SettingsOptions) -> Settings:
    """The settings of the search, overridden by what the user sets now that changes no score.

    What the user sets is read from the command line, the environment and TOML as always. A new
    place of the model or of prompts is taken as well, if their content is the same. A run folder
    may come from anybody: it never decides whether the model's own code runs, nor where the code
    of benchmarks lies.

    Raises:
        SettingsError: An option or the file of `--config` would make it another run.
        RunError: The model is not the one that was searched.
    """
    from heretic.config.layers import merged_layers, read_user_layers
    from heretic.config.nested import merged
    from heretic.config.schema import reproducible_names, values_as_before
    from heretic.config.settings import Settings
    from heretic.errors import RunError, SettingsError

    fixed = reproducible_names()
    layers = read_user_layers(options.overrides, options.config)
    own = Settings.from_layers(layers)
    names = own.model_fields_set - fixed
    recorded = {
        **values_as_before(),
        **{name: value for name, value in manifest.settings.items() if name not in _CONSENT},
        **{name: value for name, value in own.to_dict().items() if name in names},
    }
    command = merged_layers(layer for layer in layers if layer.of_command)
    asked = {name: value for name, value in command.items() if name in fixed}
    settings = Settings.restore(merged(recorded, asked))
    before = Settings.restore(recorded)
    if any(getattr(settings, name) != getattr(before, name) for name in fixed - _PLACES):
        raise SettingsError(
            "These options belong to another run.",
            remedy="Leave out what the run was not searched with, or search again.",
        )
    model = str(manifest.fingerprint["model"])
    commit = model.partition("@")[2]
    if commit and settings.model_commit is None:  # a branch on the Hub moves on
        settings = settings.replaced(model_commit=commit)
    if settings.fingerprint()["model"] != model:
        raise RunError(
            f"{settings.model} is not the model that was searched, or has changed since.",
            remedy="Say where that is: --model, and for a Hub id --model-commit.",
        )
    return settings


def trial_of(folder: RunFolder, index: int) -> Trial:
    """The row of a run's front.

    Raises:
        SettingsError: There is no such row.
    """
    from heretic.errors import SettingsError

    trials = front_of(folder.read_trials())
    if not 0 <= index < len(trials):
        raise SettingsError(
            f"trial_index is {index}, but the front of {folder.path} has {len(trials)} rows."
        )
    return trials[index]
