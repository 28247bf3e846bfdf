"""A study in a storage: its trials, and who works on them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from heretic.errors import RunError, StudyError
from heretic.events import Reporter
from heretic.records.plan import Plan
from heretic.records.trial import Trial
from heretic.runs.journal import INTERRUPTED, TRIAL_KEY, trial_from_record, trial_to_record
from heretic.search.sampler import PLAN_KEY
from heretic.search.shared.address import storage_address
from heretic.search.shared.pulse import Pulse
from heretic.search.shared.storage import HURRY, Storage

OWNER_KEY = "heretic_process"
TICKET_KEY = "heretic_ticket"
PREFIX = "heretic-"
BEGINNING = "-beginning"
"""Ends the name of the study that holds what a run begins with; it is no search."""

_LARGEST = 60_000
"""Characters of a value as JSON: MySQL's fields hold 64 KiB. Beyond that it refuses a value or, as
it is set up on some servers, cuts it off without an error."""

_PIECE = 30_000
"""Characters of a piece of a larger value: as JSON, a sign becomes two at most."""

_PIECES = "pieces"

Direction = Literal["minimize", "maximize"]
T = TypeVar("T")


class Remote:
    """A run's study in a storage, while this process is connected to it.

    Two studies stand there: that of the search, for anybody who reads Optuna's, and a second one
    with what the run begins with and the signs of life.

    Args:
        name: The run's digest.
        me: A name that no other process has.
    """

    def __init__(self, storage: Storage, name: str, me: str) -> None:
        self.storage = storage
        self.name = f"{PREFIX}{name}"
        self.me = me
        self.beginning = self._study(f"{self.name}{BEGINNING}", ["minimize"])
        self._pulse = Pulse(storage, self.beginning, me)
        self._searched: int | None = None
        self._ids: dict[int, int] = {}  # of trials, by number
        self._tickets = 0

    def _study(self, name: str, directions: Sequence[Direction]) -> int:
        """The id of a study, which is made if there is none."""

        def made(storage: BaseStorage) -> tuple[int, list[str]]:
            study = optuna.create_study(
                storage=storage, study_name=name, directions=directions, load_if_exists=True
            )
            found = [direction.name.lower() for direction in study.directions]
            return storage.get_study_id_from_name(name), found

        study, found = self.storage.ask(made)
        if found != list(directions):
            raise StudyError(
                f"The study {name} in {self.storage.address.shown} has other objectives.",
                remedy="It is not one of Heretic, or was changed: use another database.",
            )
        return study

    def start(self) -> None:
        """Begin to give signs of life."""
        self._pulse.start()

    def stop(self) -> None:
        """Say that this process has ended."""
        self._pulse.stop()

    def search(self, directions: Sequence[Direction]) -> None:
        """Open the study of the search.

        Raises:
            StudyError: It is one for other objectives, or the storage does not answer.
        """
        if self._searched is None:
            self._searched = self._study(self.name, directions)

    def has_ended(self, process: object) -> bool:
        """Whether another process gives no more signs of life; nobody's trials are nobody's."""
        return self._pulse.has_ended(str(process))

    @property
    def is_ending(self) -> bool:
        """Whether a storage that does not answer is no longer waited for."""
        return self.storage.patience <= HURRY

    def hurry(self) -> None:
        """From now on, do not wait long for a storage that does not answer."""
        self.storage.patience = min(self.storage.patience, HURRY)

    # --- trials ------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number.

        Raises:
            StudyError: The study is gone, or the storage does not answer.
        """
        found = self._of_study(lambda one, study: one.get_all_trials(study, deepcopy=False))
        self._ids |= {trial.number: trial._trial_id for trial in found}  # noqa: SLF001
        return found

    def reserve(self) -> int:
        """A new trial without a plan; returns its number."""
        self._tickets += 1
        mine = {OWNER_KEY: self.me, TICKET_KEY: self._tickets}

        def made(storage: BaseStorage, study: int) -> FrozenTrial:
            for trial in storage.get_all_trials(study, deepcopy=False):
                if mine.items() <= trial.user_attrs.items():  # the first try had counted
                    return trial
            template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=mine)
            return storage.get_trial(storage.create_new_trial(study, template))

        found = self._of_study(made)
        self._ids[found.number] = found._trial_id  # noqa: SLF001
        return found.number

    def assign(
        self,
        number: int,
        plan: Plan,
        params: Mapping[str, Any],
        distributions: Mapping[str, optuna.distributions.BaseDistribution],
    ) -> bool:
        """Give a reserved trial its plan, and what the sampler learns from.

        Returns:
            False if others have settled it meanwhile.

        Raises:
            StudyError: As `trials`.
        """
        trial = self._ids[number]

        def write(storage: BaseStorage, study: int) -> bool:
            known = storage.get_trial(trial).params
            try:
                for name in params.keys() - known.keys():
                    internal = distributions[name].to_internal_repr(params[name])
                    storage.set_trial_param(trial, name, internal, distributions[name])
                # It comes last: with it, the trial is whole.
                storage.set_trial_user_attr(trial, PLAN_KEY, plan.to_dict())
            except UpdateFinishedTrialError:
                return False
            return True

        return self._of_study(write)

    def finish(self, trial: Trial) -> bool:
        """Tell what became of a trial; False if others have settled it meanwhile."""
        values = [score.value for score in trial.scores if score.optimization != "none"]
        complete = trial.state == "complete"
        state = TrialState.COMPLETE if complete else TrialState.FAIL
        record, key = trial_to_record(trial), self._ids[trial.number]
        attributes = _attributes_of(record)

        def write(storage: BaseStorage, study: int) -> bool:
            try:
                for name, value in attributes.items():
                    storage.set_trial_user_attr(key, name, value)
                storage.set_trial_state_values(key, state, values if complete else None)
            except UpdateFinishedTrialError:
                told = trial_of(storage.get_trial(key))
                return told is not None and trial_to_record(told) == record  # the first try counted
            return True

        return self._of_study(write)

    def settle(self, number: int) -> None:
        """Close a trial that nobody works on any more; what is told of it later does not count."""
        trial = self._ids[number]

        def write(storage: BaseStorage, study: int) -> None:
            with suppress(UpdateFinishedTrialError):  # somebody else has
                storage.set_trial_state_values(trial, TrialState.FAIL)

        self._of_study(write)

    def add(self, trial: Trial, frozen: FrozenTrial) -> int:
        """Add a trial that has ended already; returns its number.

        Args:
            frozen: The trial in the journal.
        """
        number = self.reserve()
        self.assign(number, trial.plan, frozen.params, frozen.distributions)
        if trial.failure == INTERRUPTED:
            self.settle(number)
        else:
            self.finish(renumbered(trial, number))
        return number

    def _of_study(self, work: Callable[[BaseStorage, int], T]) -> T:
        study = self._searched
        assert study is not None, "the study of the search is not open"
        try:
            return self.storage.ask(lambda storage: work(storage, study))
        except KeyError as error:
            raise StudyError(
                f"The study {self.name} in {self.storage.address.shown} is gone.",
                remedy="The run folder holds all trials that are known here; the same command "
                "puts them into a new study.",
            ) from error


def renumbered(trial: Trial, number: int) -> Trial:
    """The same trial under another number."""
    return trial_from_record({**trial_to_record(trial), "number": number})


def plan_of(frozen: FrozenTrial) -> Plan | None:
    """The plan of a trial in the storage; None if it has none yet.

    Raises:
        RunError: It is malformed.
    """
    plan = frozen.user_attrs.get(PLAN_KEY)
    return None if plan is None else Plan.from_dict(plan)


def trial_of(frozen: FrozenTrial) -> Trial | None:
    """What became of a trial in the storage that has ended; None if it never had a plan.

    Its state decides: a trial that others have settled was interrupted, also if the process that
    had it was not dead after all, and has told its scores a moment too late.

    Raises:
        RunError: It is malformed.
    """
    plan = plan_of(frozen)
    if plan is None:
        return None
    record = _record_of(frozen)
    if record is not None:
        trial = trial_from_record(record)
        if (trial.state == "complete") == (frozen.state == TrialState.COMPLETE):
            return renumbered(trial, frozen.number)
    return Trial(frozen.number, plan, (), "failed", INTERRUPTED)


def _attributes_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's record as user attributes; in pieces, if no database's field would hold it."""
    text = json.dumps(record)
    if len(text) <= _LARGEST:
        return {TRIAL_KEY: record}
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    attributes = {f"{TRIAL_KEY}/{count}": piece for count, piece in enumerate(pieces)}
    return {**attributes, TRIAL_KEY: {_PIECES: len(pieces)}}


def _record_of(frozen: FrozenTrial) -> Any:
    """A trial's record, as `_attributes_of` has put it there; None if there is none.

    Raises:
        RunError: A piece is missing or damaged.
    """
    record = frozen.user_attrs.get(TRIAL_KEY)
    count = record.get(_PIECES) if isinstance(record, Mapping) else None
    if not isinstance(count, int):
        return record
    pieces = [frozen.user_attrs.get(f"{TRIAL_KEY}/{number}") for number in range(count)]
    try:
        return json.loads("".join(map(str, pieces)))
    except ValueError as error:
        raise RunError(
            f"Trial {frozen.number} is malformed in the storage: {error}.",
            remedy="Go on without --storage, or delete the run's two studies there.",
        ) from error


@contextmanager
def connected(text: str, name: str, reporter: Reporter) -> Iterator[Remote]:
    """A run's study in a storage, for as long as the context lasts.

    Args:
        text: The address.
        name: The run's digest.

    Raises:
        SettingsError: It is no address.
        StudyError: The storage does not answer.
    """
    storage = Storage(storage_address(text), reporter)
    try:
        remote = Remote(storage, name, secrets.token_hex(4))
        remote.start()
        try:
            yield remote
        finally:
            remote.stop()
    finally:
        storage.close()
