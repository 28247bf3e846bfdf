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

from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any, Self

from heretic.errors import HereticError
from heretic.worker.protocol import Chat, Request, State, StateName


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


class WorkerProcess:
    """A worker that this object has started.

    All methods belong to the event loop that `start` ran in. Any number of tasks may ask at once.

    Attributes:
        state: The worker's state, as it last said it.
        on_state: Called in the event loop with each new state; it must be quick.
        on_event: Called with each event before the run folder is known, in the form of a line of
            events.jsonl.
    """

    state: State
    on_state: Callable[[State], None] | None
    on_event: Callable[[Mapping[str, Any]], None] | None

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
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """Number of the process."""
        raise NotImplementedError

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        raise NotImplementedError

    async def request(self, request: Request) -> dict[str, Any]:
        """Ask, and wait for the result. Where the waiting task is cancelled, the request is too.

        Raises:
            RequestError: The worker refused, or failed.
            WorkerGoneError: It has ended.
        """
        raise NotImplementedError

    def stream(self, request: Chat) -> AsyncGenerator[str]:
        """The pieces of a reply. Closing the iterator ends the reply.

        Raises:
            RequestError: As `request`, after the pieces so far.
            WorkerGoneError: As `request`.
        """
        raise NotImplementedError

    async def until(self, *names: StateName) -> State:
        """Wait for one of these states, or for the end of the worker.

        Returns:
            The state, which is `stopped` or `dead` if the worker has ended.
        """
        raise NotImplementedError

    def last_lines(self, count: int = 20) -> list[str]:
        """The last lines that the worker wrote to standard error: why it died, say."""
        raise NotImplementedError

    async def terminate(self, patience: float = 60.0, grace: float = 10.0) -> State:
        """End the worker: ask it to, which a search does after its batch, then signal.

        Args:
            patience: Seconds after which SIGTERM ends it at once, which loses the batch only.
            grace: Seconds after that, then SIGKILL.

        Returns:
            The last state.
        """
        raise NotImplementedError
