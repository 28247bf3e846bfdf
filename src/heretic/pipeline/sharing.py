"""A run that several processes search on through a storage: how it begins, and who may join."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from heretic.config.settings import Settings
from heretic.errors import RunError, StudyError
from heretic.events import Notice, Reporter
from heretic.pipeline.identity import fingerprint
from heretic.prompts import PromptSets
from heretic.records import parse
from heretic.records.plan import fit_file
from heretic.runs.folder import RunFolder, digest, slug
from heretic.runs.manifest import RunManifest
from heretic.runs.store import DIRECTIONS, REPORT, SWEEP
from heretic.scorers.registry import detector_version
from heretic.system.machine import accelerator, differences, versions

if TYPE_CHECKING:
    from heretic.pipeline.run import Session
    from heretic.search.shared.beginning import Begun
    from heretic.search.shared.remote import Remote

_FIT = re.compile(re.escape(fit_file("DIGEST")).replace("DIGEST", "[0-9a-f]+"))
_KEPT = (DIRECTIONS, SWEEP)
"""Files that must be the same in all run folders, beside those of fits."""


def check_storage(settings: Settings) -> None:
    """Say before any work that a storage cannot be used.

    Raises:
        SettingsError: Its address is none, or the package that speaks to it is missing.
        StudyError: It does not answer.
    """
    if settings.storage is None:
        return
    from heretic.search.shared.address import check_driver, storage_address
    from heretic.search.shared.storage import check_answers

    address = storage_address(settings.storage)
    check_driver(address)
    check_answers(address)


@contextmanager
def begun_elsewhere(
    settings: Settings,
    prompts: PromptSets,
    folder: RunFolder,
    seed: int,
    detector: int | None,
    reporter: Reporter,
) -> Iterator[None]:
    """A new run begins as it did in another process; or, if this is the first, for all others.

    What is done within the context is done for all: directions, fits, first plans.

    Args:
        folder: Is filled with what the first process has put into the storage; locked.
        detector: Version of the refusal detector, if scorers use it.

    Raises:
        StudyError: The storage does not answer, or this process would score otherwise.
        RunError: The folder cannot be written.
    """
    if settings.storage is None or folder.read_manifest() is not None:
        yield
        return
    from heretic.search.shared.beginning import await_or_claim, let_go
    from heretic.search.shared.remote import connected

    with connected(settings.storage, folder.digest, reporter) as remote:
        parts = _parts(settings, prompts, seed)
        _check_nearest(remote, parts, reporter)
        found = await_or_claim(remote, lambda: _tell_of_waiting(reporter))
        if not isinstance(found, int):
            _check_proof(found, detector)
            _fill(folder, found, settings, prompts, seed)
            reporter.emit(Notice(f"The run begins as in the study {remote.name}."))
            yield
            return
        try:
            _identify(remote, parts)
            yield
            _publish(remote, found, folder, detector)
        except BaseException:
            let_go(remote, found)
            raise


@contextmanager
def shared_study(session: Session) -> Iterator[None]:
    """Let the session's study follow the one in the storage, if the settings name one.

    Raises:
        StudyError: The storage does not answer, or this process would score otherwise.
        RunError: The run did not begin as the study.
    """
    settings, folder, study = session.settings, session.folder, session.study
    if settings.storage is None:
        yield
        return
    from heretic.search.shared.beginning import await_or_claim, let_go, push_trials
    from heretic.search.shared.remote import connected

    with connected(settings.storage, folder.digest, session.reporter) as remote:
        found = await_or_claim(remote, lambda: _tell_of_waiting(session.reporter))
        detector = detector_version(session.evaluator.scorers)
        if not isinstance(found, int):
            _check_proof(found, detector)
            _check_files(found, folder)
        else:
            try:
                _identify(remote, _parts(settings, session.prompts, session.manifest.seed))
                told = push_trials(remote, folder)
                _publish(remote, found, folder, detector)
            except BaseException:
                let_go(remote, found)
                raise
            if told:
                session.reporter.emit(Notice(f"The storage now holds the run's {told} trials."))
        study.remote = remote
        try:
            yield
        finally:
            study.remote = None


def _tell_of_waiting(reporter: Reporter) -> None:
    text = "Another process makes what the run begins with (directions, first plans); waiting"
    reporter.emit(Notice(text))


# --- what must be the same -------------------------------------------------------------------


def _parts(settings: Settings, prompts: PromptSets, seed: int) -> dict[str, str]:
    """Digests of all that identifies a run, by name, so that storages hold no setting itself."""
    values = {**fingerprint(settings, prompts), "seed": seed, "name": slug(settings.model)}
    return {name: digest({name: value}) for name, value in values.items()}


def _identify(remote: Remote, parts: Mapping[str, str]) -> None:
    from heretic.search.shared.beginning import write_parts

    write_parts(remote, parts)


def _check_nearest(remote: Remote, parts: Mapping[str, str], reporter: Reporter) -> None:
    """Refuse a model that differs where all else is the same; else tell of the nearest study.

    Raises:
        StudyError: So it is: a process that was to join would search alone.
    """
    from heretic.search.shared.beginning import parts_of_all

    others = parts_of_all(remote)
    if remote.name in others:
        return
    nearest: tuple[list[str], str] | None = None
    for name, other in others.items():
        if other.get("name") != parts["name"] and other.get("model") != parts["model"]:
            continue
        differing = sorted(k for k in {*parts, *other} if parts.get(k) != other.get(k))
        nearest = min(nearest or (differing, name), (differing, name), key=lambda one: len(one[0]))
    if nearest is None:
        return
    differing, name = nearest
    if differing == ["model"]:
        raise StudyError(
            f"The study {name} in the storage has the same settings and a model of the same name, "
            "but the model's files differ here.",
            remedy="Use the same files. For a search of its own, give the model's folder another "
            "name, or use another database.",
        )
    text = f"A new study begins in the storage: it is not {name}, which differs in"
    reporter.emit(Notice(f"{text} {', '.join(differing)}."))


def _proof(detector: int | None) -> dict[str, str]:
    """What has to be equal in all processes; model, prompts and settings are in the name."""
    judged = {} if detector is None else {"refusal detector": str(detector)}
    return {**versions(), **judged}


def _check_proof(begun: Begun, detector: int | None) -> None:
    """Refuse to join with other packages: scores could not be compared.

    Raises:
        StudyError: They differ.
    """
    wanted = {key: str(value) for key, value in _table(begun, "proof").items()}
    told = differences(wanted, _proof(detector))
    if told:
        raise StudyError(
            f"This process cannot join the study in the storage: it has {told}.",
            remedy="Install what the first process has, or search without --storage.",
        )


def _check_files(begun: Begun, folder: RunFolder) -> None:
    """Refuse a run that did not begin as the study: its plans would mean other edits.

    Raises:
        RunError: A file differs.
    """
    marks = folder.require_manifest().files
    own = {name: mark.sha256 for name, mark in marks.items() if _is_shared(name)}
    wanted = {name: mark for name, mark in begun.marks.items() if _is_shared(name)}
    for name in sorted({*own, *wanted}):
        if own.get(name) != wanted.get(name):
            raise RunError(
                f"{folder.path} did not begin as the study in the storage: {name} differs.",
                remedy="Search without --storage, or join in a new run folder "
                "(study_checkpoint_dir).",
            )


def _is_shared(name: str) -> bool:
    return name in _KEPT or _FIT.fullmatch(name) is not None


# --- what the run begins with ----------------------------------------------------------------


def _publish(remote: Remote, claim: int, folder: RunFolder, detector: int | None) -> None:
    """Put the run's files into the storage, so that others can join."""
    from heretic.search.shared.beginning import publish

    manifest = folder.require_manifest()
    # A report of trials holds prompts and replies; before, it has figures only.
    names = [*_KEPT, *([] if folder.read_trials() else [REPORT])]
    read = {name: folder.read_file(name) for name in names}
    files = {name: content for name, content in read.items() if content is not None}
    files |= {fit_file(name): content for name, content in folder.read_fits().items()}
    found = {"proof": _proof(detector), "run": dict(manifest.found)}
    publish(remote, claim, found, files)


def _fill(
    folder: RunFolder, begun: Begun, settings: Settings, prompts: PromptSets, seed: int
) -> None:
    """Write what the run begins with into its folder; the manifest comes last.

    Raises:
        StudyError: A file does not have its digest, or is none of a run.
        RunError: The folder cannot be written.
    """
    folder.discard()  # files of a run that was discarded, or never began
    for name in begun.marks:
        if not _is_shared(name) and name != REPORT:
            raise StudyError(
                f"The storage holds {name!r}, which is no file of a run.",
                remedy="Delete the run's two studies there, and begin anew.",
            )
        folder.write_file(name, begun.file(name))
    code = fingerprint(settings, prompts)
    folder.write_manifest(
        RunManifest(
            model=settings.model,
            digest=folder.digest,
            seed=seed,
            fingerprint=code,
            settings=settings.recorded(),
            found={**_table(begun, "run"), "device": str(accelerator())},
            versions=versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    )


def _table(begun: Begun, name: str) -> Mapping[str, Any]:
    try:
        return parse.table(begun.found.get(name), name)
    except ValueError as error:
        raise StudyError(f"What the run begins with is malformed: {error}.") from error
