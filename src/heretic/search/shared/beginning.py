"""What a run begins with, in a storage: made by one process, fetched by the others.

A run is begun by the process that claims it first, whose claim counts for as long as the process
gives signs of life. When it has everything, it puts files into the storage, and the claim is
complete. All others wait for that; the files have digests, and what does not have its digest is
refused. They are kept in pieces that fit into every database's text (MySQL: 64 KiB).
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from heretic.errors import StudyError
from heretic.records import parse
from heretic.runs.folder import RunFolder
from heretic.runs.journal import INTERRUPTED, TRIAL_KEY, trial_from_record
from heretic.runs.store import digest_of
from heretic.search.sampler import trials_in
from heretic.search.shared.remote import BEGINNING, OWNER_KEY, PREFIX, Remote, plan_of

PARTS_KEY = "heretic_run"
_FOUND = "found"
_FILES = "files"
_PIECE = 45_000
"""Bytes of a piece: 60,000 characters as base64."""

_TURN = 1.0


@dataclass(frozen=True, slots=True)
class Begun:
    """A claim that is complete.

    Attributes:
        found: What the first process says of the run, JSON-ready.
        marks: SHA-256 of each file, by its path below the run folder.
    """

    found: Mapping[str, Any]
    marks: Mapping[str, str]
    trial: FrozenTrial

    def file(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            StudyError: It is not what was put there.
        """
        attributes = self.trial.user_attrs
        pieces, count = [], 0
        while isinstance(piece := attributes.get(f"{name}/{count}"), str):
            pieces.append(base64.b64decode(piece))
            count += 1
        content = b"".join(pieces)
        if digest_of(content) != self.marks[name]:
            raise StudyError(
                f"{name} in the storage does not have its digest.",
                remedy="Delete the run's two studies there, and begin anew.",
            )
        return content


def await_or_claim(remote: Remote, wait: Callable[[], None]) -> Begun | int:
    """What another process has begun; or the number of this process's claim, if it is first.

    Args:
        wait: Called once when another process is at it.

    Raises:
        StudyError: The storage does not answer, or what it holds is malformed.
    """
    told, mine = False, None
    while True:
        claims = _claims(remote)
        for one in claims:
            if one.state == TrialState.COMPLETE:
                if mine is not None:
                    give_up(remote, mine)
                return _begun(one)
        owners = [one for one in claims if one.state == TrialState.RUNNING]
        living = [one for one in owners if not remote.has_ended(one.user_attrs.get(OWNER_KEY))]
        first = living[0] if living else None
        if first is None:
            mine = _claim(remote)
        elif first.user_attrs.get(OWNER_KEY) == remote.me:
            return first.number
        else:
            if not told:
                wait()
            told = True
            time.sleep(_TURN)


def _claims(remote: Remote) -> list[FrozenTrial]:
    return remote.storage.ask(lambda one: one.get_all_trials(remote.beginning, deepcopy=False))


def _claim(remote: Remote) -> int:
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING, user_attrs={OWNER_KEY: remote.me}
    )

    def made(storage: BaseStorage) -> int:
        for one in storage.get_all_trials(remote.beginning, deepcopy=False):
            is_mine = one.user_attrs.get(OWNER_KEY) == remote.me
            if is_mine and one.state == TrialState.RUNNING:  # the first try had counted
                return one.number
        return storage.get_trial(storage.create_new_trial(remote.beginning, template)).number

    return remote.storage.ask(made)


def give_up(remote: Remote, claim: int) -> None:
    """Let others begin the run."""
    _close(remote, claim, TrialState.FAIL)


def let_go(remote: Remote, claim: int) -> None:
    """As `give_up`, after an error: it does not wait long, and raises no error of its own."""
    remote.hurry()
    with suppress(StudyError):  # others will notice this process's silence
        give_up(remote, claim)


def _close(remote: Remote, claim: int, state: TrialState) -> None:
    values = [0.0] if state == TrialState.COMPLETE else None

    def write(storage: BaseStorage) -> None:
        trial = storage.get_trial_id_from_study_id_trial_number(remote.beginning, claim)
        if not storage.get_trial(trial).state.is_finished():
            storage.set_trial_state_values(trial, state, values)

    remote.storage.ask(write)


def publish(
    remote: Remote, claim: int, found: Mapping[str, Any], files: Mapping[str, bytes]
) -> None:
    """Put what a run begins with into the storage, and complete the claim.

    Args:
        found: JSON-ready.
        files: Content, by its path below the run folder.

    Raises:
        StudyError: The storage does not answer.
    """
    marks = {name: digest_of(content) for name, content in files.items()}
    attributes: dict[str, Any] = {_FOUND: found, _FILES: marks}
    for name, content in files.items():
        for count, start in enumerate(range(0, len(content), _PIECE)):
            piece = base64.b64encode(content[start : start + _PIECE]).decode()
            attributes[f"{name}/{count}"] = piece

    def trial_id(storage: BaseStorage) -> int:
        return storage.get_trial_id_from_study_id_trial_number(remote.beginning, claim)

    trial = remote.storage.ask(trial_id)
    for key, value in attributes.items():
        _write(remote, trial, key, value)
    if any(one.state == TrialState.COMPLETE for one in _claims(remote)):
        raise StudyError(
            "Another process took this one for dead, and has begun the run in the storage.",
            remedy="Start again with another study_checkpoint_dir: the run then begins as there.",
        )
    _close(remote, claim, TrialState.COMPLETE)


def _write(remote: Remote, trial: int, key: str, value: Any) -> None:
    remote.storage.ask(lambda one: one.set_trial_user_attr(trial, key, value))


def _begun(trial: FrozenTrial) -> Begun:
    try:
        found = parse.table(trial.user_attrs.get(_FOUND), _FOUND)
        marks = parse.table(trial.user_attrs.get(_FILES), _FILES)
        return Begun(found, {name: parse.text(one, name) for name, one in marks.items()}, trial)
    except ValueError as error:
        raise StudyError(
            f"What the run begins with is malformed in the storage: {error}.",
            remedy="Delete the run's two studies there, and begin anew.",
        ) from error


def push_trials(remote: Remote, folder: RunFolder) -> int:
    """Put the trials of a run that the storage lacks into it; returns how many.

    The caller holds the claim, so that nobody else does the same.

    Raises:
        StudyError: The storage does not answer.
        RunError: The journal is damaged.
    """
    directions, trials = trials_in(folder.open_journal())
    if not trials:
        return 0
    remote.search(directions)
    there, told = remote.trials(), 0
    for frozen in trials:
        other = there[frozen.number] if frozen.number < len(there) else None
        if other is not None and not _is_left(other, frozen):
            continue
        number = remote.reserve() if other is None else other.number
        told += 1
        plan, record = plan_of(frozen), frozen.user_attrs.get(TRIAL_KEY)
        if plan is not None:
            remote.assign(number, plan, frozen.params, frozen.distributions)
        trial = None if record is None else trial_from_record(record)
        if trial is None or trial.failure == INTERRUPTED:
            remote.settle(number)
        else:
            remote.finish(trial)
    return told


def _is_left(other: FrozenTrial, frozen: FrozenTrial) -> bool:
    """Whether a call that was broken off left a trial of the journal open in the storage."""
    is_same = plan_of(other) in (None, plan_of(frozen))
    is_part = other.params.items() <= frozen.params.items()
    return not other.state.is_finished() and is_same and is_part


# --- which runs a storage holds --------------------------------------------------------------


def write_parts(remote: Remote, parts: Mapping[str, str]) -> None:
    """Say what identifies the run: digests of its settings, by name, which tell nothing else."""
    remote.storage.ask(
        lambda one: one.set_study_user_attr(remote.beginning, PARTS_KEY, dict(parts))
    )


def parts_of_all(remote: Remote) -> dict[str, dict[str, str]]:
    """What identifies the runs in the storage, by the names of their studies."""
    studies = remote.storage.ask(lambda one: one.get_all_studies())
    found = {}
    for study in studies:
        parts = study.user_attrs.get(PARTS_KEY)
        name = study.study_name
        if name.startswith(PREFIX) and name.endswith(BEGINNING) and isinstance(parts, dict):
            found[name.removesuffix(BEGINNING)] = {str(k): str(v) for k, v in parts.items()}
    return found
