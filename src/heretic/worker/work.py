"""Carries out the requests: opens a run, searches, and serves others between two batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from heretic import pipeline
from heretic.errors import HereticError, RunError, is_of_interruption
from heretic.events import (
    BROKEN_OFF,
    Event,
    SearchFinished,
    StageFinished,
    StageStarted,
    whole_stages,
)
from heretic.pipeline import opening
from heretic.pipeline.run import Session
from heretic.records.trial import Trial
from heretic.runs.events import said_by
from heretic.worker import answers
from heretic.worker.asked import layers_of, settings_of
from heretic.worker.board import Board
from heretic.worker.inbox import CancelledError, Inbox
from heretic.worker.protocol import (
    Chat,
    Failure,
    Front,
    Inspect,
    Open,
    Preview,
    Sample,
    Save,
    Score,
    Search,
    Upload,
    Work,
)
from heretic.worker.undisturbed import undisturbed
from heretic.worker.wire import Messages, failure_of

PAUSED, CHAT, SAMPLES = "Paused", "Chat", "Samples of replies"
"""Titles of stages in a run's events, whose time is none of the search's."""

CANCELLED = Failure("Cancelled", "The request was given up.")
_log = logging.getLogger(__name__)


class Worker:
    """Works in the thread that calls `run`; another one fills the inbox.

    It is also the first reporter of the run: it tells of events that no run folder has yet, and
    ends work that has been given up where that shows a sign of progress.
    """

    def __init__(self, inbox: Inbox, messages: Messages, board: Board) -> None:
        self._inbox, self._messages, self._board = inbox, messages, board
        self._session: Session | None = None
        self._held = ExitStack()
        self._search: Search | None = None
        self._loading = 0.0
        self._reason: str | None = None

    def run(self) -> None:
        """Carry out requests until the worker is to end."""
        with self._held:
            self._board.say(state="idle")
            while (found := self._inbox.take()) is not None:
                self._carry_out(*found)

    # --- what is told ----------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Take an event. The end of a stage is always taken, so that the run's events hold it.

        Raises:
            CancelledError: The request that is being carried out has been given up.
        """
        if isinstance(event, SearchFinished):
            self._reason = event.reason
        if self._board.state.run is None:
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            content = {"at": at, "event": type(event).__name__, **said_by(event)}
            self._messages.say("event", content)
        if not isinstance(event, StageFinished):
            self._inbox.check()

    # --- requests --------------------------------------------------------------------------

    def _carry_out(self, number: int, request: Work) -> None:
        """Do what a request says and answer it, whatever happens."""
        self._board.say(doing=type(request).__name__.lower())
        try:
            if isinstance(request, Search):
                self._begin_search(number, request)
                return
            result = self._result(number, request)
        except CancelledError:
            self._messages.fail(number, CANCELLED)
        except HereticError as error:
            self._fail(number, CANCELLED if is_of_interruption(error) else failure_of(error))
        except Exception as error:
            self._fail(number, CANCELLED if is_of_interruption(error) else _bug(error))
        else:
            self._messages.answer(number, result)
        finally:
            self._inbox.done()
            self._board.say(doing=None)

    def _fail(self, number: int, failure: Failure) -> None:
        _log.warning("A request failed: %s", failure.message)
        self._messages.fail(number, failure)

    def _result(self, number: int, request: Work) -> Mapping[str, Any]:
        self._inbox.check()
        if isinstance(request, Open):
            return self._open(request)
        with nullcontext() if self._session is None else undisturbed(self._session.model):
            match request:
                case Inspect():
                    return answers.inspected(request, self)
                case Preview():
                    return answers.previewed(request, self)
            return self._of_session(number, request, self._opened())

    def _of_session(self, number: int, request: Work, session: Session) -> Mapping[str, Any]:
        match request:
            case Front():
                return answers.front_of(session)
            case Sample():
                trials = [answers.trial_of(session, one) for one in request.trials]
                with _stage(session, SAMPLES):
                    check = self._inbox.check
                    return answers.sampled(session, trials, request, lambda *_: check())
            case Chat():
                trial = None if request.trial is None else answers.trial_of(session, request.trial)
                with _stage(session, CHAT):
                    return self._chat(number, request, session, trial)
            case Score():
                return answers.scored(session, request)
            case Save():
                return answers.saved(session, request)
            case Upload():
                return answers.uploaded(session, request)
        raise AssertionError(f"no such request: {request}")

    def _opened(self) -> Session:
        """The session.

        Raises:
            RunError: No run is open.
        """
        if self._session is None:
            raise RunError("No run is open.", remedy="Open one first.")
        return self._session

    # --- opening ---------------------------------------------------------------------------

    def _open(self, request: Open) -> Mapping[str, Any]:
        if self._session is not None:
            raise RunError(
                f"This worker works on the run in {self._session.folder.path}.",
                remedy="End it, and start another one for another run.",
            )
        started = perf_counter()
        self._board.say(state="loading")
        try:
            with ExitStack() as stack:
                opened = self._locked(request, stack, started)
                self._board.say(run=str(opened.folder.path))
                session = opening.prepared(opened, agree=lambda _: False)
                self._held.push(stack.pop_all())
        except BaseException:
            self._board.say(state="idle", run=None)
            raise
        self._session, self._loading = session, perf_counter() - started
        self._board.say(state="ready")
        return answers.described(session)

    def _locked(self, request: Open, stack: ExitStack, started: float) -> opening.OpenRun:
        """The run of a request, which the stack keeps locked."""
        if request.run is not None:
            path, layers = Path(request.run).expanduser(), layers_of(request.settings)
            trust = request.trust_plugins
            return stack.enter_context(
                opening.reopened_run(path, layers, self, started, trust_plugins=trust)
            )
        settings = settings_of(request.settings, self, demo=request.demo)
        action = settings.checkpoint_action or "continue"
        may_begin = request.demo or settings.checkpoint_action != "continue"
        opened = stack.enter_context(opening.held_run(settings, self, started, may_begin=may_begin))
        found = opening.existing_run(opened)
        if found is not None and not opening.settle(opened, found[0], action):
            raise RunError(
                f"The run in {opened.folder.path} is left as it is.",
                remedy="Set checkpoint_action to continue or to restart.",
            )
        return opened

    # --- searching -------------------------------------------------------------------------

    def _begin_search(self, number: int, request: Search) -> None:
        """Answer that the search begins, and search.

        Raises:
            RunError: No run is open, or a search is on its way.
        """
        session = self._opened()
        if self._search is not None:
            raise RunError(
                "A search is on its way, and there is one at a time.",
                remedy="Stop it first, or let it end.",
            )
        settings = session.settings
        if request.time_limit is not None:
            settings = settings.replaced(time_limit=request.time_limit)  # it may be malformed
        self._inbox.check()
        self._inbox.searching(request)
        self._search, self._reason = request, None
        self._board.say(state="searching", doing=None, reason=None, problem=None)
        self._messages.answer(number, {})  # whoever reads it knows the state already
        problem = None
        try:
            with whole_stages(session.reporter) as reporter:
                self._run_search(replace(session, settings=settings, reporter=reporter), request)
        except HereticError as error:
            problem = str(error)
        except KeyboardInterrupt:
            if not self._inbox.ends_search:  # a signal
                raise
        except Exception as error:
            problem = _bug(error).message
        finally:
            self._search = None
            self._inbox.searching(None)
        reason = "failed" if problem else self._reason
        self._board.say(state="ready", reason=reason, problem=problem)

    def _run_search(self, session: Session, request: Search) -> None:
        # What lay between the opening and the search counts for no time limit.
        loading = self._loading if request.time_limit is None else 0.0
        timed = replace(session, started=perf_counter() - loading)
        self._loading = 0.0
        pipeline.search(
            timed,
            request.n_trials,
            timed=request.timed,
            between_batches=lambda may_hold: self._give_way(session, may_hold),
        )

    def _give_way(self, session: Session, may_hold: bool) -> bool:
        """Carry out what waits, and hold the search while it is paused; see `BetweenBatches`."""
        while True:
            while (found := self._inbox.take_at_once()) is not None:
                self._carry_out(*found)
            if not may_hold and (self._inbox.ends_search or self._inbox.pauses):
                return False
            if self._inbox.ends_search or not self._inbox.pauses:
                break
            self._board.say(state="paused")
            with _stage(session, PAUSED):
                self._inbox.until_it_goes_on()
        if self._inbox.ends_search:
            raise KeyboardInterrupt
        self._board.say(state="searching")
        return True

    # --- chat ------------------------------------------------------------------------------

    def _chat(
        self, number: int, request: Chat, session: Session, trial: Trial | None
    ) -> Mapping[str, Any]:
        """Send a reply piece by piece; it ends where nobody wants it any more."""
        model, pieces = session.model, []
        edit: Any = nullcontext()
        if trial is not None:
            edit = model.edited(trial.plan, session.directions, request.strength)
        messages = [{"role": one.role, "content": one.content} for one in request.messages]
        is_cancelled = False
        with edit, closing(model.stream_reply(messages, request.tokens)) as reply:
            for piece in reply:
                if piece:  # some tokens are a part of a character
                    pieces.append(piece)
                    self._messages.piece(number, piece)
                is_cancelled = self._inbox.is_cancelled or self._inbox.is_unheard
                if is_cancelled:
                    break
        return {"text": "".join(pieces), "cancelled": is_cancelled}


@contextmanager
def _stage(session: Session, title: str) -> Iterator[None]:
    """A stage in the run's events, which ends there however it ends."""
    session.reporter.emit(StageStarted(title))
    summary = BROKEN_OFF
    try:
        yield
        summary = ""
    finally:
        session.reporter.emit(StageFinished(summary))


def _bug(error: Exception) -> Failure:
    """What is said of an error that no user can fix; its traceback goes into the log."""
    _log.error("A bug", exc_info=error)
    told = f"{type(error).__name__}: {error}"
    return Failure("Bug", f"The worker failed: {told}", "The traceback is in the run's log.")
