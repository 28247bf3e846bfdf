"""A job of a batch: its settings, its folder, what it has come to, and the process that does it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from heretic.batch.file import JobTable
from heretic.batch.progress import latest_events
from heretic.config.consent import check_consent
from heretic.config.schema import SettingsLayer, settings_of
from heretic.config.settings import Settings, remarks_on, with_ready_made
from heretic.config.sources import read_dotenv, read_environment, read_secrets
from heretic.errors import HereticError, RunError, SettingsError, is_of_interruption, reason
from heretic.records import parse
from heretic.runs.listing import run_folders
from heretic.runs.lock import RunLock, is_locked
from heretic.runs.manifest import RunManifest
from heretic.system.documents import read_json
from heretic.system.files import write_atomic
from heretic.system.secrets import masked

ENDING = "job.json"
LOG = "output.log"
SAVED = "model"

State = Literal["waiting", "running", "unfinished", "finished", "failed", "changed"]
"""`waiting`: nothing of it is there. `unfinished`: it was interrupted or killed, and goes on.
`changed`: it has finished, with other settings than the batch file has now."""

_OF_THE_BATCH = ("evaluate_model", "checkpoint_action", "n_additional_trials")
"""Settings with which a job would be no search, or another one each time it goes on."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job with the settings of its run.

    Attributes:
        folder: Holds its run folder, what it printed (`output.log`), how it ended (`job.json`) and,
            unless the settings name a place, the saved model.
    """

    name: str
    folder: Path
    settings: Settings


@dataclass(frozen=True, slots=True)
class Ending:
    """How the process of a job ended; without one it was interrupted or killed, or never ran.

    No file of a run says this: a search may end before its last trial (`time_limit`), and saving
    may fail after it.

    Attributes:
        state: `finished` or `failed`.
        settings: Those that the job then had, without secrets and consents.
        reason: What failed; empty if nothing did.
        run: Name of the run folder that the job has finished with: there may be others of the same
            settings, with other prompts. Empty if it failed.
    """

    state: State
    settings: Mapping[str, Any]
    reason: str = ""
    run: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """What a job has come to.

    Attributes:
        note: Why, in a sentence; empty where the state says all.
    """

    state: State
    note: str = ""


def load_job(file: Path, table: JobTable, tell: Callable[[str], None]) -> Job:
    """The job of a table, with its settings validated. The batch file stands in for config.toml.

    Args:
        tell: Called with what the user should know of the files that were read.

    Raises:
        SettingsError: A value is malformed or contradicts another place or the batch, the model is
            missing, or a place that cannot give consent does.
    """
    whole = f"heretic batch {file}"
    own = SettingsLayer(table.origin, table.values, of_command=True, whole=whole)
    above = (read_environment(), read_dotenv(), read_secrets())
    for layer in above:
        _check_override(table, layer)
    for remark in remarks_on((*above, own)):
        tell(remark)
    layers = with_ready_made((*above, own))
    settings = Settings.from_layers(layers)
    check_consent(settings, layers)
    _check(table, settings)
    folder = settings.study_checkpoint_dir / file.stem / table.name
    places: dict[str, Any] = {"study_checkpoint_dir": folder}
    if settings.model_action is None:
        places["model_action"] = "none"
    if settings.model_action == "save" and settings.save_directory is None:
        places["save_directory"] = folder / SAVED
    return Job(table.name, folder, settings.replaced(**places))


def _check_override(table: JobTable, layer: SettingsLayer) -> None:
    """Refuse a place above the file that would make jobs alike which the file tells apart."""
    for path in _in_both(table.own, layer.values):
        raise SettingsError(
            f"{layer.origin.spell(path)} {layer.origin.name} would override {'.'.join(path)} "
            f"{table.origin.name}.",
            remedy="Take it away there: only [defaults] of a batch can be overridden.",
        )


def _in_both(
    first: Mapping[str, Any], second: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    for key in sorted(first.keys() & second.keys()):
        tables = isinstance(first[key], Mapping) and isinstance(second[key], Mapping)
        path = (*above, key)
        yield from _in_both(first[key], second[key], path) if tables else [path]


def _check(table: JobTable, settings: Settings) -> None:
    origin = table.origin.name
    if not settings.model:
        raise SettingsError(
            f"No model is given {origin}.", remedy="Set `model` in the job or in [defaults]."
        )
    if "study_checkpoint_dir" in table.own:
        raise SettingsError(
            f"study_checkpoint_dir stands {origin}: a batch has one folder.",
            remedy="Set it in [defaults].",
        )
    for name in _OF_THE_BATCH:
        if getattr(settings, name) is not None:
            raise SettingsError(
                f"{name} is set {origin}, or for all jobs: a batch begins searches, and goes on "
                "with them by itself.",
                remedy="Leave it out.",
            )
    needed = {"save_directory": "save", "upload_repo_id": "upload", "benchmarks": "benchmark"}
    for name, action in needed.items():
        if settings.model_action is None and getattr(settings, name) is not None:
            raise SettingsError(
                f"{name} is set {origin}, or for all jobs, and model_action is not.",
                remedy=f'Set model_action = "{action}" as well.',
            )


def shared_places(jobs: Sequence[Job]) -> dict[str, str]:
    """By the name of a job, what is wrong if it saves or uploads where another job does.

    Folders that lie in one another count: a place must be empty when the model is saved there.
    """
    found: dict[str, str] = {}
    saved: dict[str, Path] = {}
    uploads: dict[str, str] = {}
    folders = {job.name: job.folder.resolve() for job in jobs}
    for job in jobs:
        settings = job.settings
        problem = ""
        if settings.model_action == "save" and settings.save_directory is not None:
            folder = settings.save_directory.resolve()
            problem = _shared_folder(job.name, folder, saved, folders)
            saved[job.name] = folder
        elif settings.model_action == "upload":
            place = str(settings.upload_repo_id)
            first = uploads.setdefault(place, job.name)
            problem = (
                f"It uploads to {place}, and so does job {first}." if first != job.name else ""
            )
        if problem:
            found[job.name] = (
                f"{problem} Give each a place of its own, or leave save_directory out: each is "
                "then saved in its job's folder."
            )
    return found


def _shared_folder(
    name: str, place: Path, saved: Mapping[str, Path], folders: Mapping[str, Path]
) -> str:
    """How the place where a job saves touches that of a job before it, or any job's folder."""
    for other, theirs in saved.items():
        if place == theirs:
            return f"It saves to {place}, and so does job {other}."
        if place.is_relative_to(theirs) or theirs.is_relative_to(place):
            return f"It saves to {place}, and job {other} to {theirs}: one is in the other."
    for other, folder in folders.items():
        if folder.is_relative_to(place) or (other != name and place.is_relative_to(folder)):
            return f"It saves to {place}, and job {other} keeps its run in {folder}."
    return ""


# --- what it has come to ---------------------------------------------------------------------


def condition(job: Job) -> Condition:
    """What a job has come to, by what its folder holds.

    Raises:
        RunError: The folder or the file that says how the job ended cannot be read.
    """
    if job.folder.is_dir() and is_locked(job.folder):
        return Condition("running")
    ending = _read_ending(job)
    if ending is None:
        return Condition("waiting" if run_of(job) is None else "unfinished")
    changed = _changed(ending.settings, job.settings)
    if not changed:
        return Condition(ending.state, ending.reason)
    if ending.state == "failed":
        return Condition("unfinished", "Its settings have changed since it failed.")
    return Condition(
        "changed",
        f"It has finished with other settings ({', '.join(changed)}). Take the change back, give "
        "the job another name, or do it again with --retry.",
    )


def _changed(before: Mapping[str, Any], settings: Settings) -> list[str]:
    """Names of settings that differ; those that a release added or dropped do not count.

    Neither does the place of the batch's folder, which may have been moved.
    """
    then, now = _without_place(before), _without_place(settings.recorded())
    return [name for name in now if name in then and then[name] != now[name]]


def _without_place(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the job's folder, and without the place in it where the model is saved."""
    values = dict(recorded)
    folder, saved = values.pop("study_checkpoint_dir", None), values.get("save_directory")
    if folder is not None and saved is not None and Path(saved) == Path(folder) / SAVED:
        values["save_directory"] = None
    return values


def run_of(job: Job) -> Path | None:
    """The run that a job has finished with, or else the latest one of its settings.

    Returns:
        Its folder; None if the job has not come so far.

    Raises:
        RunError: The job's folder or its ending cannot be read.
    """
    ending = _read_ending(job)
    if ending is not None and ending.run and not _changed(ending.settings, job.settings):
        return job.folder / ending.run
    for folder in run_folders(job.folder):
        try:
            manifest = folder.read_manifest()
        except RunError:  # the job's own process says what is wrong with it
            continue
        if manifest is not None and _is_run_of(manifest, job.settings):
            return folder.path
    return None


def _is_run_of(manifest: RunManifest, settings: Settings) -> bool:
    """Whether the settings that count are those of a run; an earlier run of the job may be left."""
    now, before = settings.recorded(), manifest.settings
    counted = [setting.name for setting in settings_of() if setting.scores]
    same = all(before[name] == now[name] for name in counted if name in before and name in now)
    return same and settings.seed in (None, manifest.seed)


# --- its process -----------------------------------------------------------------------------


def do(job: Job, search: Callable[[Settings], int]) -> int:
    """Do a job in this process, and keep how it ended.

    Args:
        search: Searches by some settings and does what they say, up to an exit status, which is 0
            unless it was interrupted.

    Raises:
        RunError: Another process does the job, or its folder cannot be written.
        HereticError: As `search`.
    """
    with RunLock(job.folder, "Check space and permissions.", "the job").held():
        path = job.folder / ENDING
        path.unlink(missing_ok=True)
        try:
            status = search(job.settings)
        except Exception as error:
            if not is_of_interruption(error):
                ending = Ending("failed", job.settings.recorded(), masked(reason(error)))
                with suppress(RunError):  # a full disk, of which `error` tells; the job goes on
                    _write(path, ending)
            raise
        if status == 0:
            events = latest_events(job.folder)
            run = "" if events is None else events.parent.name
            _write(path, Ending("finished", job.settings.recorded(), run=run))
        return status


def _write(path: Path, ending: Ending) -> None:
    write_atomic(path, json.dumps(asdict(ending), indent=2) + "\n")


def _read_ending(job: Job) -> Ending | None:
    path = job.folder / ENDING
    if not path.exists():
        return None
    try:
        content = parse.table(read_json(path), "it")
        state = content.get("state")
        if state not in ("finished", "failed"):
            raise ValueError("its state is neither finished nor failed")
        settings = parse.table(content.get("settings"), "settings")
        reason, run = (parse.text(content.get(name), name) for name in ("reason", "run"))
        if run != Path(run).name:
            raise ValueError("its run is no name of a folder")
        return Ending(state, settings, reason, run)
    except (ValueError, HereticError) as error:
        raise RunError(
            f"{path} does not say how the job ended: {error}.",
            remedy="Delete it; the job then goes on from its run folder.",
        ) from error
