"""Opening a run for work: checks, lock, log, settings of the run. Nothing here asks or prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from heretic.config.schema import SettingsLayer
from heretic.config.settings import Settings
from heretic.errors import RunError
from heretic.events import Notice, Reporter, Several
from heretic.export import hub, saving
from heretic.export.reproduce import check_plugins
from heretic.export.request import ExportOptions
from heretic.export.staging import upload_place
from heretic.harness.tasks import check_tasks
from heretic.pipeline.checks import check_model
from heretic.pipeline.detector import check_detector
from heretic.pipeline.gguf_ahead import check_gguf_ahead
from heretic.pipeline.identity import fingerprint
from heretic.pipeline.nearest import nearest_run
from heretic.pipeline.prompts import load_prompts
from heretic.pipeline.recorded import check_prompts_are_here, run_settings
from heretic.pipeline.run import Session, open_folder, prepare, start_plans_of
from heretic.pipeline.sharing import check_storage
from heretic.pipeline.workers import check_workers
from heretic.pipeline.worthwhile import Agree
from heretic.prompts import PromptSets
from heretic.records.choices import DEFAULT_STRATEGY, weights_strategy
from heretic.records.options import options_of
from heretic.records.trial import Trial
from heretic.runs.events import recording_to
from heretic.runs.folder import RunFolder, known_run
from heretic.runs.log import logging_to
from heretic.runs.manifest import RunManifest
from heretic.scorers import Scorer, check_scorers, load_scorers
from heretic.system.files import check_writable
from heretic.tracking.reporter import check_tracker


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run folder that this process has locked, with everything a session is prepared from.

    Attributes:
        reporter: Shows events, and writes them to the log and the events of the run folder.
        started: When the work began, by `time.perf_counter`.
    """

    settings: Settings
    folder: RunFolder
    seed: int
    prompts: PromptSets
    scorers: Sequence[Scorer]
    reporter: Reporter
    started: float


@contextmanager
def held_run(
    settings: Settings, reporter: Reporter, started: float, *, may_begin: bool = True
) -> Iterator[OpenRun]:
    """Lock the run folder of these settings, and log into it.

    Args:
        started: When the work began, by `time.perf_counter`.
        may_begin: Whether a new run may begin; if not, one of exactly these settings must exist.

    Raises:
        HereticError: As `check_workers`, `check_storage` and `check_before_work`; or a tracker is
            not installed, no run folder can be written, the prompts cannot be read, the run is in
            use, or there is no run and none may begin.
    """
    check_workers(settings)
    check_storage(settings)
    check_tracker(settings)
    scorers = check_before_work(settings)
    check_writable(settings.study_checkpoint_dir)
    prompts = load_prompts(settings, reporter, scorers=scorers)
    folder, seed = open_folder(settings, prompts)
    if not folder.exists:
        told = _new_run(settings, prompts, folder, seed, may_begin)
        reporter.emit(Notice(told))
    with locked(folder, reporter, started) as logged:
        yield OpenRun(settings, folder, seed, prompts, scorers, logged, started)


@contextmanager
def reopened_run(
    path: Path,
    layers: Sequence[SettingsLayer],
    reporter: Reporter,
    started: float,
    *,
    trust_plugins: bool,
    check: Callable[[Settings], object] = lambda _: None,
) -> Iterator[OpenRun]:
    """Lock a run folder that exists, with the settings it was made with.

    Args:
        layers: What the user sets, the highest first.
        started: When the work began, by `time.perf_counter`.
        trust_plugins: Whether scorers from outside Heretic may be named by the run.
        check: Called with the settings before any work.

    Raises:
        HereticError: As `known_run`, `run_settings` and `check_before_work`; or the run names a
            scorer from outside Heretic without consent, or its prompts have changed.
    """
    folder, manifest = known_run(path)
    check_plugins(manifest.settings, "run", trust_plugins)
    settings = run_settings(manifest, layers, judged=True)
    check(settings)
    check_prompts_are_here(settings)
    scorers = check_before_work(settings)
    prompts = load_prompts(settings, reporter, scorers=scorers)
    if fingerprint(settings, prompts)["prompts"] != manifest.fingerprint.get("prompts"):
        raise RunError(
            f"The prompts have changed since the run in {path} was searched.",
            remedy="Restore the old prompts, say where they are (--bad-prompts.dataset and so "
            "on), or search again.",
        )
    with locked(folder, reporter, started) as logged:
        yield OpenRun(settings, folder, manifest.seed, prompts, scorers, logged, started)


@contextmanager
def locked(
    folder: RunFolder, reporter: Reporter, started: float | None = None
) -> Iterator[Several]:
    """Lock a run folder, and write what is shown to its log and to its events as well.

    Args:
        started: When the work began, by `time.perf_counter`; by default, now.

    Raises:
        RunError: Another process has locked it.
    """
    since = 0.0 if started is None else perf_counter() - started
    with (
        folder.lock(),
        logging_to(folder.log_path) as log,
        recording_to(folder.events_path, since) as events,
    ):
        yield Several(reporter, log, events)


def existing_run(opened: OpenRun) -> tuple[RunManifest, list[Trial]] | None:
    """The manifest and the trials that the run has already; None if it begins now.

    A damaged run is deleted if `checkpoint_action` is `restart`.

    Raises:
        RunError: The run is damaged, and nobody said that it may be deleted.
    """
    try:
        lost = opened.folder.mend()
        manifest = opened.folder.read_manifest()
        trials = opened.folder.read_trials()
    except RunError:
        if opened.settings.checkpoint_action != "restart":
            raise
        opened.folder.discard()  # which is what the errors advise
        return None
    if lost:
        opened.reporter.emit(Notice(lost, level="warning"))
    return None if manifest is None else (manifest, trials)


def settle(opened: OpenRun, manifest: RunManifest, action: str) -> bool:
    """Continue a run that exists, or delete its trials; False if it is left as it is.

    Args:
        action: As the setting `checkpoint_action`.

    Raises:
        RunError: Its search cannot go on; see `check_detector`.
    """
    if action == "continue":
        check_detector(manifest, opened.scorers, opened.folder.path)
    if action == "restart":
        opened.folder.discard()
    if action == "quit":
        opened.reporter.emit(Notice(f"The run in {opened.folder.path} is left as it is."))
    return action != "quit"


def prepared(opened: OpenRun, agree: Agree | None) -> Session:
    """A session of an open run.

    Args:
        agree: As in `prepare`.

    Raises:
        HereticError: As `prepare`, or the model cannot be saved as the settings say.
    """
    settings, reporter = opened.settings, opened.reporter
    session = prepare(
        settings,
        opened.prompts,
        opened.folder,
        opened.seed,
        reporter,
        scorers=opened.scorers,
        agree=agree,
        started=opened.started,
    )
    destination = _destination(settings)
    if destination is not None:
        saving.check_export(session.model, *destination, settings.max_rank)
        _tell_of_dora(settings, destination[1], reporter)
    return session


def _tell_of_dora(settings: Settings, strategy: str, reporter: Reporter) -> None:
    """Say before a search what its adapter will not load in."""
    if strategy == "adapter" and settings.row_normalization == "full":
        text = (
            "With row_normalization full the adapter will be a DoRA: PEFT loads it, vLLM and "
            "llama.cpp do not. For those search with --row-normalization none, or save merged "
            "weights (--export-strategy merge)."
        )
        reporter.emit(Notice(text))


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
        HereticError: A package that benchmarks need is missing.
    """
    check_model(settings)
    destination = _destination(settings)
    if destination is not None:
        saving.check_place(options_of(ExportOptions, settings), *destination)
    if settings.export_strategy == "gguf":
        check_gguf_ahead(settings)
    if settings.model_action == "upload" and settings.upload_repo_id is not None:
        hub.check_upload(settings.upload_repo_id)
    scorers = check_scorers(load_scorers(settings), settings.max_refusals)
    if settings.model_action == "benchmark":
        check_tasks(settings.benchmarks or (), settings.benchmark_path)
    start_plans_of(settings)
    return scorers


def _destination(settings: Settings) -> tuple[Path, str] | None:
    """The folder that may be saved to, and the export strategy; None if settings name no folder.

    An upload is saved in the temporary folder first.
    """
    strategy = weights_strategy(settings.export_strategy or DEFAULT_STRATEGY)
    if settings.model_action == "upload":
        return upload_place(), strategy
    if settings.save_directory is None or settings.model_action not in (None, "save"):
        return None
    return settings.save_directory, strategy


def _new_run(
    settings: Settings, prompts: PromptSets, folder: RunFolder, seed: int, may_begin: bool
) -> str:
    """A line that says that a new run begins, and which run of the same model is nearest.

    Raises:
        RunError: No new run may begin.
    """
    place = settings.study_checkpoint_dir
    code = fingerprint(settings, prompts)
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
