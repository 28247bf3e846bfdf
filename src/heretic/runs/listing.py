"""The runs in a folder: one row for each, and the run of some settings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from heretic.errors import RunError
from heretic.records import parse
from heretic.records.trial import Trial, front
from heretic.runs.folder import RunFolder, digest
from heretic.runs.manifest import RunManifest
from heretic.system.display import counted
from heretic.system.files import expanded


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One row of `heretic runs`.

    Attributes:
        name: Its path in the folder that is listed, with slashes.
        state: `running`, `finished`, `unfinished` or `unreadable`.
        completed: Number of trials with scores.
        failed: Number of trials without scores.
        n_trials: Number of trials asked for when the run began; None if unknown.
        front: Number of trials on the front.
        created: When the run began, ISO 8601 in UTC.
        updated: Time of the last trial, or of the manifest, ISO 8601 in UTC.
        note: Why the run is unreadable; None if it is readable.
    """

    path: Path
    name: str
    model: str
    state: str
    completed: int = 0
    failed: int = 0
    n_trials: int | None = None
    front: int = 0
    created: str = ""
    updated: str = ""
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "path": str(self.path)}


Known = dict[Path, tuple[object, RunSummary]]
"""Rows of readable runs, with how their files were when they were read."""


def list_runs(checkpoint_dir: Path, known: Known | None = None) -> list[RunSummary]:
    """The runs in a folder and those of its batches, the most recently used first.

    Unreadable runs have a note.

    Args:
        known: What an earlier call for this folder has put there: of these runs, only those whose
            files have changed are read again.

    Raises:
        RunError: The folder cannot be read.
    """
    before = {} if known is None else dict(known)
    found: Known = {}
    rows = []
    for folder in all_run_folders(checkpoint_dir):
        files = _files(folder)
        old, row = before.get(folder.path, (None, None))
        if row is None or old != files:
            row = _summary(folder, checkpoint_dir)
        else:
            row = replace(row, state=_state(folder, row.n_trials, row.completed))
        if row.note is None:
            found[folder.path] = files, row
        rows.append(row)
    if known is not None:
        known.clear()
        known.update(found)
    return rows


def numbers(runs: Iterable[RunSummary]) -> dict[int, RunSummary]:
    """Short numbers of the readable runs, from 1 in the order in which they began.

    A number stays with its run while runs are used and made; only removing a run changes others.
    """
    readable = [run for run in runs if run.note is None]
    ordered = sorted(readable, key=lambda run: (run.created, run.name))
    return dict(enumerate(ordered, start=1))


def path_of_run(named: str, checkpoint_dir: Path) -> Path:
    """The folder of a run that is named by its path, its name, or its number.

    Raises:
        RunError: There is no run of that number.
    """
    path = expanded(named)
    if path.exists():
        return path
    if named.isascii() and named.isdigit():
        runs = list_runs(checkpoint_dir)
        known = numbers(runs)
        if int(named) not in known:
            raise _no_such_number(named, checkpoint_dir, len(known), len(runs) - len(known))
        return known[int(named)].path
    inside = checkpoint_dir / named
    return inside if RunFolder(inside).exists else path


def _no_such_number(named: str, checkpoint_dir: Path, known: int, unreadable: int) -> RunError:
    """The error for a number that no run has."""
    if not known and not unreadable:
        return RunError(
            f"There is no run {named}: there are no runs in {checkpoint_dir}.",
            remedy="Go to the folder where the search was started, or name the run's folder.",
        )
    there = {0: "none has a number", 1: "the only number there is 1"}
    told = there.get(known, f"the numbers there are 1 to {known}")
    told += f", and {counted(unreadable, 'run')} cannot be read" if unreadable else ""
    return RunError(
        f"There is no run {named} in {checkpoint_dir}: {told}.",
        remedy="`heretic runs` lists the runs.",
    )


def find_run(checkpoint_dir: Path, fingerprint: Mapping[str, Any]) -> RunManifest | None:
    """The manifest of the most recently used run with this fingerprint; None if there is none."""
    wanted = digest(fingerprint)
    for folder in run_folders(checkpoint_dir):
        with suppress(RunError):  # a run that cannot be read cannot be resumed
            manifest = folder.read_manifest()
            if manifest is not None and digest(manifest.fingerprint) == wanted:
                return manifest
    return None


def run_folders(checkpoint_dir: Path) -> list[RunFolder]:
    """Folders that hold a run, the most recently used first.

    Raises:
        RunError: The folder cannot be read.
    """
    try:
        paths = sorted(checkpoint_dir.iterdir()) if checkpoint_dir.is_dir() else []
    except OSError as error:
        raise RunError(
            f"{checkpoint_dir} cannot be read: {error.strerror or error}.",
            remedy="Check permissions.",
        ) from error
    return sorted(filter(_holds_run, map(RunFolder, paths)), key=_used, reverse=True)


def all_run_folders(checkpoint_dir: Path) -> list[RunFolder]:
    """As `run_folders`, with the runs of batches, which are in `BATCH/JOB` there, or in `JOB`.

    A folder that links lead to more than once is looked into once.

    Raises:
        RunError: The folder cannot be read.
    """
    found = run_folders(checkpoint_dir)
    runs = {folder.path for folder in found}
    seen = {os.path.realpath(checkpoint_dir)}
    for place in _folders_in(checkpoint_dir):
        for job in [place, *_folders_in(place)] if place not in runs else ():
            if (real := os.path.realpath(job)) not in seen:
                seen.add(real)
                with suppress(RunError):  # not ours
                    found += run_folders(job)
    return sorted(found, key=_used, reverse=True)


def _folders_in(folder: Path) -> list[Path]:
    """The folders in one, links last; none where it cannot be read, or is no folder."""
    with suppress(OSError):
        found = [path for path in folder.iterdir() if path.is_dir()]
        return sorted(found, key=lambda path: (path.is_symlink(), path))
    return []


def name_of(run: Path, checkpoint_dir: Path) -> str:
    """A run's path in the folder of runs, with slashes; its own name where it is elsewhere."""
    with suppress(ValueError):
        return run.relative_to(checkpoint_dir).as_posix()
    return run.name


def _holds_run(folder: RunFolder) -> bool:
    try:
        # Without its manifest it is a damaged run, which the list says.
        return folder.exists or folder.journal_path.is_file()
    except OSError:  # no permission to look
        return True


def _summary(folder: RunFolder, checkpoint_dir: Path) -> RunSummary:
    name = name_of(folder.path, checkpoint_dir)
    updated = _iso(_used(folder))
    try:
        manifest = folder.require_manifest()
        trials = folder.read_trials()
    except (RunError, OSError) as error:
        note = str(error)
        model = folder.path.name
        return RunSummary(folder.path, name, model, "unreadable", updated=updated, note=note)
    completed = sum(trial.state == "complete" for trial in trials)
    return RunSummary(
        path=folder.path,
        name=name,
        model=manifest.model,
        state=state_of(folder, manifest, trials),
        completed=completed,
        failed=len(trials) - completed,
        n_trials=target_of(manifest),
        front=len(front(trials)),
        created=manifest.created,
        updated=updated,
    )


def state_of(folder: RunFolder, manifest: RunManifest, trials: Iterable[Trial]) -> str:
    """`running`, `finished` (it has all its trials) or `unfinished`."""
    completed = sum(trial.state == "complete" for trial in trials)
    return _state(folder, target_of(manifest), completed)


def _state(folder: RunFolder, target: int | None, completed: int) -> str:
    if folder.is_locked:
        return "running"
    return "finished" if target is not None and completed >= target else "unfinished"


def target_of(manifest: RunManifest) -> int | None:
    """Number of trials asked for when the run began; None if the manifest does not say."""
    with suppress(ValueError):
        return parse.whole(manifest.settings.get("n_trials"), "n_trials", 0)
    return None


def _used(folder: RunFolder) -> float:
    """When the run was last written to, in seconds since the epoch."""
    return max([0.0, *(found.st_mtime for found in _stats(folder))])


def _files(folder: RunFolder) -> object:
    """What is another thing once the run has been written to."""
    return [(found.st_ino, found.st_size, found.st_mtime_ns) for found in _stats(folder)]


def _stats(folder: RunFolder) -> Iterator[os.stat_result]:
    for path in (folder.journal_path, folder.manifest_path):
        with suppress(OSError):  # there is none, or it may not be looked at
            yield path.stat()


def _iso(seconds: float) -> str:
    """A time as ISO 8601 in UTC; empty if no calendar has it."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return ""
