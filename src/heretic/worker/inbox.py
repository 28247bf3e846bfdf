"""Requests on their way from the thread that reads them to the one that carries them out."""

from __future__ import annotations

from collections import deque
from threading import Condition
from typing import assert_never

from heretic.errors import RunError
from heretic.worker.protocol import Cancel, Control, Open, Pause, Quit, Resume, Search, Stop, Work

Numbered = tuple[int, Work]


class CancelledError(KeyboardInterrupt):
    """Whoever asked has given the request up. Everything treats it as an interruption."""


class Inbox:
    """The requests that wait, and what is asked of the one that is being carried out.

    All methods may be called by any thread.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._waiting: deque[Numbered] = deque()
        self._current: Numbered | None = None
        self._search: Search | None = None
        self._cancelled: set[int] = set()
        self._pauses = self._stops = self._quits = self._is_unheard = False

    # --- by the thread that reads ----------------------------------------------------------

    def put(self, number: int, request: Work) -> None:
        """Let a request wait for its turn."""
        with self._changed:
            self._waiting.append((number, request))
            self._changed.notify_all()

    def control(self, request: Control) -> None:
        """Take a request that needs no turn.

        Raises:
            RunError: There is no search that it could be about.
        """
        with self._changed:
            match request:
                case Quit():
                    self._quits = True
                case Cancel(request=number):
                    self._cancelled.add(number)
                case Pause():
                    self._require_search()
                    self._pauses = True
                case Resume():
                    self._require_search()
                    self._pauses = False
                case Stop():
                    self._require_search(Search, Open)
                    self._stops = True
                case _:
                    assert_never(request)
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody listens any more."""
        with self._changed:
            self._quits = self._is_unheard = True
            self._changed.notify_all()

    def end_now(self) -> None:
        """End the worker. May be called by a signal's handler, wherever its thread is."""
        self._quits = True

    def _require_search(self, *kinds: type[Work]) -> None:
        coming = [request for _, request in self._waiting]
        coming += [self._current[1]] if self._current is not None else []
        if self._search is None and not any(isinstance(one, kinds or Search) for one in coming):
            raise RunError("No search is on its way.", remedy="Begin one.")

    # --- by the thread that works ----------------------------------------------------------

    def take(self) -> Numbered | None:
        """The next request, once there is one; None if the worker is to end."""
        with self._changed:
            while not self._quits:
                if self._waiting:
                    return self._next()
                self._changed.wait()
            return None

    def take_at_once(self) -> Numbered | None:
        """The next request; None if there is none now."""
        with self._changed:
            return self._next() if self._waiting else None

    def _next(self) -> Numbered:
        self._current = self._waiting.popleft()
        return self._current

    def done(self) -> None:
        """The request that was taken is answered."""
        with self._changed:
            if self._current is not None:
                self._cancelled.discard(self._current[0])
            self._current = None
            coming = any(isinstance(request, Search) for _, request in self._waiting)
            if self._search is None and not coming:
                self._stops = self._pauses = False

    def searching(self, search: Search | None) -> None:
        """A search begins, or has ended (None), which every stop and pause is about."""
        with self._changed:
            self._search, self._current = search, None
            if search is None:
                self._stops = self._pauses = False

    def until_it_goes_on(self) -> None:
        """Wait for a request, or for a paused search to go on or to end."""
        with self._changed:
            while self._pauses and not (self._waiting or self.ends_search):
                self._changed.wait()

    def rest(self) -> list[int]:
        """Numbers of the requests that nobody will carry out."""
        with self._changed:
            numbers = [number for number, _ in self._waiting]
            self._waiting.clear()
            return numbers

    # --- what is asked ---------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def pauses(self) -> bool:
        """Whether the search is to pause."""
        return self._pauses

    @property
    def ends_search(self) -> bool:
        """Whether the search is to end after its batch."""
        return self._stops or self._quits

    @property
    def asked(self) -> str | None:
        """As `State.asked`."""
        names = {"quit": self._quits, "stop": self._stops, "pause": self._pauses}
        return next((name for name, is_asked in names.items() if is_asked), None)

    @property
    def is_cancelled(self) -> bool:
        """Whether the request that is being carried out has been given up.

        The opening of a run also is by whatever ends a search, and a reply that nobody hears.
        """
        current = self._current
        if current is None:
            return False
        number, request = current
        opens = isinstance(request, Open) and self.ends_search
        return opens or number in self._cancelled

    @property
    def is_unheard(self) -> bool:
        """Whether nobody listens any more."""
        return self._is_unheard

    def check(self) -> None:
        """Raise if the request that is being carried out has been given up.

        Raises:
            CancelledError: It has.
        """
        if self.is_cancelled:
            raise CancelledError
