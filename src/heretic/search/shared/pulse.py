"""Signs of life: which processes of a shared study still run.

Each process raises a number of its own in the storage. Whose number has not changed for a while, by
the clock of whoever looks, has ended: clocks of machines need not agree. Time in which the storage
did not answer is not counted. (Optuna's own heartbeats go by the database's clock, belong to single
trials, and do not exist behind its gRPC proxy.)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heretic.search.shared.storage import Storage

BEAT = 10.0
"""Seconds between two signs of life."""

STOPPED = 60.0
"""A process that has given no sign of life for so many seconds has ended."""

_KEY = "alive:"
_ENDED = -1
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Heard:
    """What was heard of a process.

    Attributes:
        number: The last one; None before the first.
        silence: Seconds since it changed.
        at: When it was looked for, seconds of this process's clock.
    """

    number: int | None
    silence: float
    at: float


class Pulse:
    """Gives signs of life of this process, and listens to those of others, in a thread.

    Args:
        storage: Where the study is.
        study: Id of the study whose user attributes hold the numbers.
        me: Name of this process.
    """

    def __init__(self, storage: Storage, study: int, me: str) -> None:
        self._storage = storage
        self._study = study
        self._me = me
        self._number = 0
        self._heard: dict[str, _Heard] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="pulse", daemon=True)

    def start(self) -> None:
        """Give the first sign, and go on with it.

        Raises:
            StudyError: The storage does not answer.
        """
        self._storage.ask(lambda one: one.set_study_user_attr(self._study, self._key, 0))
        self._listen(self._storage.ask(lambda one: one.get_study_user_attrs(self._study)))
        self._thread.start()

    @property
    def _key(self) -> str:
        return f"{_KEY}{self._me}"

    def has_ended(self, process: str) -> bool:
        """Whether another process gives no more signs."""
        if process == self._me:
            return False
        with self._lock:
            heard = self._heard.setdefault(process, _Heard(None, 0.0, time.monotonic()))
            return heard.number == _ENDED or heard.silence >= STOPPED

    def stop(self) -> None:
        """Say that this process has ended, if the storage answers."""
        self._end.set()
        self._thread.join(BEAT)
        if self._thread.is_alive():  # a proxy that is gone may leave a call without an answer
            return
        try:
            self._storage.ask_once(
                lambda one: one.set_study_user_attr(self._study, self._key, _ENDED)
            )
        except Exception as error:  # others will notice its silence
            _log.info("The end could not be told to the storage", exc_info=error)

    def _go_on(self) -> None:
        while not self._end.wait(BEAT):
            try:
                self._number += 1
                self._listen(self._beaten())
            except Exception as error:  # whatever the drivers raise: it may answer the next time
                _log.info("No sign of life could be given", exc_info=error)

    def _beaten(self) -> Mapping[str, Any]:
        """Give a sign, and return what is told of all processes."""
        self._storage.ask_once(
            lambda one: one.set_study_user_attr(self._study, self._key, self._number)
        )
        return self._storage.ask_once(lambda one: one.get_study_user_attrs(self._study))

    def _listen(self, told: Mapping[str, Any]) -> None:
        now = time.monotonic()
        numbers = {key.removeprefix(_KEY): n for key, n in told.items() if key.startswith(_KEY)}
        with self._lock:
            for process in {*numbers, *self._heard}:
                number = numbers.get(process)
                heard = self._heard.get(process)
                if heard is None or heard.number != number:
                    self._heard[process] = _Heard(number, 0.0, now)
                    continue
                # What passed while the storage did not answer is no silence of theirs.
                heard.silence += min(now - heard.at, 2 * BEAT)
                heard.at = now
