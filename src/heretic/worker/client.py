"""Drives a worker from an asyncio program, such as the server of a web page.

    worker = await WorkerProcess.start()
    opened = await worker.request(Open(settings={"model": "org/name"}))
    await worker.request(Search())
    async for piece in worker.stream(Chat(messages=[Message(role="user", content="Hi")])):
        ...
    await worker.terminate()

Loads no torch.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self

from heretic.errors import HereticError
from heretic.system.display import safe_line
from heretic.worker.protocol import (
    Cancel,
    Chat,
    Quit,
    Request,
    State,
    StateName,
    encoded,
    state_of,
)

_LONGEST_LINE = 64 * 2**20
_TERMINATED = 128 + signal.SIGTERM
_TAIL = 64 * 2**10  # bytes
_log = logging.getLogger(__name__)


class RequestError(HereticError):
    """A request failed.

    Attributes:
        kind: As in `protocol.Failure`.
    """

    def __init__(self, kind: str, message: str, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.kind = kind


class WorkerGoneError(HereticError):
    """The worker has ended before it answered."""


class _Asked:
    """A request on its way: its answer, and the pieces of a reply before it (then None)."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.pieces: asyncio.Queue[str | None] = asyncio.Queue()

    def end(self, error: HereticError | None, result: dict[str, Any] | None = None) -> None:
        if self.answer.done():  # nobody waits for it any more
            return
        if error is None:
            self.answer.set_result(result or {})
        else:
            self.answer.set_exception(error)
            self.answer.exception()  # whoever streams may not look at it
        self.pieces.put_nowait(None)


class WorkerProcess:
    """A worker that this object has started.

    All methods belong to the event loop that `start` ran in. Any number of tasks may ask at once.
    A program that ends without `terminate` leaves no worker behind: it stops by itself.

    Attributes:
        state: The worker's state, as it last said it.
        on_state: Called in the event loop with each new state; it must be quick.
        on_event: Called with each event before the run folder is known, in the form of a line of
            events.jsonl.
    """

    def __init__(self, process: Process, errors: IO[bytes]) -> None:
        """Use `start`."""
        self.state = State(state="starting")
        self.on_state: Callable[[State], None] | None = None
        self.on_event: Callable[[Mapping[str, Any]], None] | None = None
        self._process, self._errors = process, errors
        self._asked: dict[int, _Asked] = {}
        self._numbers = 0
        self._is_asked_to_end = False
        self._tail: list[str] = []
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, *, folder: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> Self:
        """Start a worker, in a session of its own, so that Ctrl+C does not reach it.

        Args:
            folder: Its working folder, against which paths in settings count; by default this
                process's.
            environment: Its environment; by default this process's.
        """
        # A file never blocks nor breaks what writes to it, as a pipe does that nobody reads.
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # modules in the working folder are not ours
            "-m",
            "heretic.worker",
            stdin=PIPE,
            stdout=PIPE,
            stderr=errors,
            cwd=folder,
            env=None if environment is None else dict(environment),
            limit=_LONGEST_LINE,
            start_new_session=os.name != "nt",
        )
        return cls(process, errors)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self.state.state not in ("stopped", "dead")

    # --- asking ----------------------------------------------------------------------------

    async def request(self, request: Request) -> dict[str, Any]:
        """Ask, and wait for the result. Where the waiting task is cancelled, the request is too.

        Raises:
            RequestError: The worker refused, or failed.
            WorkerGoneError: It has ended.
        """
        number, asked = await self._send(request)
        try:
            return await asked.answer
        except asyncio.CancelledError:
            self._give_up(number)
            raise

    async def stream(self, request: Chat) -> AsyncGenerator[str]:
        """The pieces of a reply. Closing the iterator ends the reply.

        Raises:
            RequestError: As `request`, after the pieces so far.
            WorkerGoneError: As `request`.
        """
        number, asked = await self._send(request)
        try:
            while (piece := await asked.pieces.get()) is not None:
                yield piece
        finally:
            if not asked.answer.done():
                self._give_up(number)
        await asked.answer

    async def _send(self, request: Request) -> tuple[int, _Asked]:
        if not self.is_alive:
            raise self._gone()
        self._numbers += 1
        number, asked = self._numbers, _Asked()
        self._asked[number] = asked
        self._write(number, request)
        with suppress(ConnectionError):  # the reader notices the end
            await self._input().drain()
        return number, asked

    def _give_up(self, number: int) -> None:
        """Tell the worker that nobody waits for an answer any more."""
        self._asked.pop(number, None)
        self._numbers += 1
        self._write(self._numbers, Cancel(request=number))

    def _write(self, number: int, request: Request) -> None:
        if not self._input().is_closing():
            self._input().write(encoded(number, request).encode())

    def _input(self) -> asyncio.StreamWriter:
        assert self._process.stdin is not None
        return self._process.stdin

    # --- listening -------------------------------------------------------------------------

    async def until(self, *names: StateName) -> State:
        """Wait for one of these states, or for the end of the worker.

        A state that passes quickly may be missed.

        Returns:
            The state, which is `stopped` or `dead` if the worker has ended.
        """
        while self.is_alive and self.state.state not in names:
            self._changed.clear()
            await self._changed.wait()
        return self.state

    async def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        while True:
            try:
                line = await output.readline()
            except ValueError:  # longer than anything that a worker says; the rest is no message
                continue
            if not line:
                break
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                _log.warning("A worker wrote what is no message: %s", safe_line(str(line[:200])))
        status = await self._process.wait()
        with self._errors as errors:  # not before: the position in the file is the worker's too
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - _TAIL))
            lines = errors.read().decode(errors="replace").splitlines()
        self._tail = [safe_line(line) for line in lines]
        self._ended(status)

    def _take(self, row: Mapping[str, Any]) -> None:
        """Take a message; one of an unknown type, of a later release, is left out."""
        match row["type"]:
            case "state":
                self._become(state_of(row))
            case "event" if self.on_event is not None:
                self.on_event(row)
            case "piece" if row["id"] in self._asked:
                self._asked[row["id"]].pieces.put_nowait(str(row["text"]))
            case "answer" if row["id"] in self._asked:
                error, result = _outcome(row)
                self._asked.pop(row["id"]).end(error, result)

    def _become(self, state: State) -> None:
        self.state = state
        self._changed.set()
        if self.on_state is not None:
            self.on_state(state)

    def _ended(self, status: int) -> None:
        as_asked = status == 0 or (self._is_asked_to_end and status == _TERMINATED)
        name: StateName = "stopped" if as_asked else "dead"
        self._become(
            replace(self.state, state=name, asked=None, doing=None, waiting=0, status=status)
        )
        gone = self._gone()
        for asked in self._asked.values():
            asked.end(gone)
        self._asked.clear()

    def _gone(self) -> WorkerGoneError:
        status = self.state.status
        told = f"by signal {-status}" if status is not None and status < 0 else f"with {status}"
        if self.state.state == "stopped":
            return WorkerGoneError("The worker has ended.", remedy="Start another one.")
        return WorkerGoneError(
            f"The worker has died ({told}). What its run has found is kept.",
            remedy="Start another one and open the run again.",
        )

    def last_lines(self, count: int = 20) -> list[str]:
        """The last lines that a worker wrote to standard error before it ended: why it died, say.

        While it is alive there are none: its log is in the run folder.
        """
        return self._tail[-count:]

    # --- ending ----------------------------------------------------------------------------

    async def terminate(self, patience: float = 60.0, grace: float = 10.0) -> State:
        """End the worker: ask it to, which a search does after its batch, then signal.

        Args:
            patience: Seconds after which SIGTERM ends it at once, which loses the batch only.
            grace: Seconds after that, then SIGKILL.

        Returns:
            The last state.
        """
        self._is_asked_to_end = True
        if self.is_alive:
            self._numbers += 1
            self._write(self._numbers, Quit())
            self._input().close()
        for seconds, signalled in (
            (patience, self._process.terminate),
            (grace, self._process.kill),
        ):
            if await self._ends_within(seconds):
                break
            with suppress(ProcessLookupError):
                signalled()
        await asyncio.shield(self._reading)
        return self.state

    async def _ends_within(self, seconds: float) -> bool:
        done, _ = await asyncio.wait({self._reading}, timeout=seconds)
        return bool(done)


def _outcome(row: Mapping[str, Any]) -> tuple[RequestError | None, dict[str, Any] | None]:
    error = row.get("error")
    if error is None:
        return None, dict(row["result"])
    return RequestError(str(error["kind"]), str(error["message"]), error.get("remedy")), None
