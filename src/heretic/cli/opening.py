"""Opening a run for a command: checks, lock, log, settings of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from heretic.cli.display.log import logging_to
from heretic.cli.display.reporter import Display, LoggedDisplay, make_reporter
from heretic.cli.display.tables import bound_text
from heretic.cli.menu.answers import DEFAULT_STRATEGY, weights_strategy
from heretic.cli.menu.checkpoint import choose_checkpoint
from heretic.cli.menu.dialogue import Dialogue
from heretic.cli.menu.questions import Back, Unanswered, terminal_prompter
from heretic.cli.recorded import check_prompts_are_here, run_settings
from heretic.errors import RunError
from heretic.events import Notice
from heretic.records.choices import RowName
from heretic.records.selection import row_within, trial_in_row
from heretic.records.trial import Score, Trial
from heretic.records.trial import front as front_of
from heretic.runs.events import recording_to
from heretic.runs.manifest import RunManifest
from heretic.system.display import safe
from heretic.system.files import check_writable

if TYPE_CHECKING:
    from heretic.cli.options import SettingsOptions
    from heretic.config.settings import Settings
    from heretic.pipeline.run import Session
    from heretic.prompts import PromptSets
    from heretic.runs.folder import RunFolder
    from heretic.scorers import Scorer


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run folder that this process has locked, with everything a session is prepared from.

    Attributes:
        display: Shows events, and writes them to the log of the run folder.
        started: When the command began, by `time.perf_counter`.
    """

    settings: Settings
    folder: RunFolder
    seed: int
    prompts: PromptSets
    scorers: Sequence[Scorer]
    display: LoggedDisplay
    started: float


@contextmanager
def held_run(
    settings: Settings, console: Console, started: float, *, may_begin: bool = True
) -> Iterator[OpenRun]:
    """Lock the run folder of these settings, log into it, and show progress.

    Args:
        started: When the command began, by `time.perf_counter`.
        may_begin: Whether a new run may begin; if not, one of exactly these settings must exist.

    Raises:
        HereticError: As `check_before_work`; or no run folder can be written, the prompts cannot
            be read, the run is in use, or there is no run and none may begin.
    """
    from heretic import pipeline

    scorers = check_before_work(settings)
    check_writable(settings.study_checkpoint_dir)
    with make_reporter(console) as display:
        prompts = pipeline.load_prompts(settings, display, scorers=scorers)
        folder, seed = pipeline.open_folder(settings, prompts)
        if not folder.exists:
            told = _new_run(settings, prompts, folder, seed, may_begin)
            display.emit(Notice(told))
        with locked(folder, display, started) as logged:
            yield OpenRun(settings, folder, seed, prompts, scorers, logged, started)


@contextmanager
def locked(
    folder: RunFolder, display: Display, started: float | None = None
) -> Iterator[LoggedDisplay]:
    """Lock a run folder, and write what is shown to its log and to its events as well.

    Args:
        started: When the command began, by `time.perf_counter`; by default, now.

    Raises:
        RunError: Another process has locked it.
    """
    since = 0.0 if started is None else perf_counter() - started
    with (
        folder.lock(),
        logging_to(folder.log_path) as log,
        recording_to(folder.events_path, since) as events,
    ):
        yield LoggedDisplay(display, log, events)


def prepared(opened: OpenRun) -> Session:
    """A session of an open run, after what the research settings ask to see."""
    from heretic import export, pipeline
    from heretic.cli.display.research import show_residuals

    session = pipeline.prepare(
        opened.settings,
        opened.prompts,
        opened.folder,
        opened.seed,
        opened.display,
        scorers=opened.scorers,
        agree=partial(_search_all_the_same, opened.display),
        started=opened.started,
    )
    destination = _destination(opened.settings)
    if destination is not None:
        export.check_export(session.model, *destination, opened.settings.max_rank)
        _tell_of_dora(opened.settings, destination[1], opened.display)
    show_residuals(session, opened.display)
    return session


def _tell_of_dora(settings: Settings, strategy: str, display: Display) -> None:
    """Say before a search what its adapter will not load in."""
    if strategy == "adapter" and settings.row_normalization == "full":
        text = (
            "With row_normalization full the adapter will be a DoRA: PEFT loads it, vLLM and "
            "llama.cpp do not. For those search with --row-normalization none, or save merged "
            "weights (--export-strategy merge)."
        )
        display.emit(Notice(text))


def _search_all_the_same(display: Display, found: str) -> bool:
    """Ask whether to search for a behaviour that hardly shows; False where nobody can be asked."""
    prompter = terminal_prompter()
    if prompter is None:
        return False
    display.close()
    display.console.print(Text(safe(found), style="yellow"))
    try:
        return prompter.confirm("Search all the same?")
    except (Back, Unanswered):
        return False


def check_before_work(settings: Settings) -> tuple[Scorer, ...]:
    """Say before any work what would stop the run later: cheap checks first, prompts after them.

    Returns:
        The scorers, loaded and checked.

    Raises:
        ModelError: The model is missing or cannot be used; see `pipeline.check_model`.
        ExportError: The destination is taken, its disk is too small, the repository's name is
            malformed, or nobody is logged in.
        ScorerError: A scorer cannot be loaded, or its judge does not answer.
        SettingsError: A benchmark does not exist, `max_refusals` does not fit the scorers, or GGUF
            files are to be uploaded.
        RunError: The start plans cannot be read.
        HereticError: A package that benchmarks or research output need is missing.
    """
    from heretic import export, pipeline
    from heretic.cli.display.research import check_research
    from heretic.harness.tasks import check_tasks
    from heretic.pipeline.gguf_ahead import check_gguf_ahead
    from heretic.records.options import options_of
    from heretic.scorers import check_scorers, load_scorers

    pipeline.check_model(settings)
    destination = _destination(settings)
    if destination is not None:
        export.check_place(options_of(export.ExportOptions, settings), *destination)
    if settings.export_strategy == "gguf":
        check_gguf_ahead(settings)
    if settings.model_action == "upload" and settings.upload_repo_id is not None:
        export.check_upload(settings.upload_repo_id)
    scorers = check_scorers(load_scorers(settings), settings.max_refusals)
    if settings.model_action == "benchmark":
        check_tasks(settings.benchmarks or (), settings.benchmark_path)
    check_research(settings)
    pipeline.start_plans_of(settings)
    return scorers


def _destination(settings: Settings) -> tuple[Path, str] | None:
    """The folder that may be saved to, and the export strategy; None if settings name no folder.

    An upload is saved in the temporary folder first.
    """
    from heretic.export import upload_place

    strategy = weights_strategy(settings.export_strategy or DEFAULT_STRATEGY)
    if settings.model_action == "upload":
        return upload_place(), strategy
    if settings.save_directory is None or settings.model_action not in (None, "save"):
        return None
    return settings.save_directory, strategy


def settle_existing_run(opened: OpenRun) -> bool:
    """Continue or discard the trials that the run has already; False if the user wants to quit.

    Raises:
        RunError: The run is damaged, or its search cannot go on (see `pipeline.check_detector`),
            and nobody said that it may be discarded.
    """
    from heretic import pipeline

    try:
        lost = opened.folder.mend()
        manifest = opened.folder.read_manifest()
        trials = opened.folder.read_trials()
    except RunError:
        if opened.settings.checkpoint_action != "restart":
            raise
        opened.folder.discard()  # which is what the errors advise
        return True
    if lost:
        opened.display.emit(Notice(lost, level="warning"))
    if manifest is None:
        return True
    told = pipeline.other_detector(manifest, opened.scorers)
    action = choose_checkpoint(
        Dialogue.of_command(opened.settings, opened.display, baseline_of(manifest)),
        completed=sum(trial.state == "complete" for trial in trials),
        n_trials=opened.settings.n_trials,
        front=front_of(trials),
        ended=told,
    )
    if action == "continue":
        pipeline.check_detector(manifest, opened.scorers, opened.folder.path)
    if action == "restart":
        opened.folder.discard()
    if action == "quit":
        opened.display.emit(Notice(f"The run in {opened.folder.path} is left as it is."))
    return action != "quit"


def _new_run(
    settings: Settings, prompts: PromptSets, folder: RunFolder, seed: int, may_begin: bool
) -> str:
    """A line that says that a new run begins, and which run of the same model is nearest.

    Raises:
        RunError: No new run may begin.
    """
    from heretic import pipeline
    from heretic.pipeline.nearest import nearest_run

    place = settings.study_checkpoint_dir
    code = pipeline.fingerprint(settings, prompts)
    nearest = nearest_run(place, code, seed, settings.to_dict())
    if may_begin:
        told = "" if nearest is None else f" It does not go on from {nearest.told()}."
        return f"A new run begins in {folder.path}.{told}"
    where = f"of {settings.model} with exactly these settings in {place.absolute()}"
    near = "" if nearest is None else f" The nearest one is {nearest.told()}."
    raise RunError(
        f"There is no run {where} to continue.{near}",
        remedy="Give the settings of a run that exists, or leave checkpoint_action out to begin "
        "a new one.",
    )


def baseline_of(manifest: RunManifest) -> tuple[Score, ...]:
    """The recorded scores of the unedited model."""
    return manifest.baseline


@contextmanager
def reopened_run(
    path: Path, options: SettingsOptions, console: Console, started: float, *, trust_plugins: bool
) -> Iterator[OpenRun]:
    """Lock a run folder that exists, with the settings it was made with.

    Args:
        started: When the command began, by `time.perf_counter`.
        trust_plugins: Whether scorers from outside Heretic may be named by the run.

    Raises:
        HereticError: As `known_run`, `run_settings` and `check_before_work`; or the run names a
            scorer from outside Heretic without consent, or its prompts have changed.
    """
    from heretic import pipeline
    from heretic.export.reproduce import check_plugins

    folder, manifest = known_run(path)
    check_plugins(manifest.settings, "run", trust_plugins)
    settings = run_settings(manifest, options, judged=True)
    check_prompts_are_here(settings)
    scorers = check_before_work(settings)
    with make_reporter(console) as display:
        prompts = pipeline.load_prompts(settings, display, scorers=scorers)
        if pipeline.fingerprint(settings, prompts)["prompts"] != manifest.fingerprint.get(
            "prompts"
        ):
            raise RunError(
                f"The prompts have changed since the run in {path} was searched.",
                remedy="Restore the old prompts, say where they are (--bad-prompts.dataset and so "
                "on), or search again.",
            )
        with locked(folder, display, started) as logged:
            yield OpenRun(settings, folder, manifest.seed, prompts, scorers, logged, started)


def known_run(path: Path) -> tuple[RunFolder, RunManifest]:
    """A run folder and its manifest.

    Raises:
        RunError: The folder holds no run, or a damaged one.
    """
    from heretic.runs.folder import RunFolder

    folder = RunFolder(path)
    return folder, folder.require_manifest()


def trial_of(
    folder: RunFolder, settings: Settings, console: Console, *, default: int | RowName = 0
) -> Trial:
    """The trial of a run that `trial_index` or else `max_refusals` chooses.

    What `max_refusals` chooses is printed.

    Args:
        default: The row where neither is set.

    Raises:
        SettingsError: There is no such row, or `max_refusals` bounds nothing.
    """
    front, most = front_of(folder.read_trials()), settings.max_refusals
    if settings.trial_index is not None or most is None or not front:
        index = settings.trial_index
        return trial_in_row(front, default if index is None else index)
    console.print(Text(safe(bound_text(front, most)[0])), soft_wrap=True)
    return front[row_within(front, most).row]
