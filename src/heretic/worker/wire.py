"""Reads requests from a stream and writes messages to another, without delaying the work."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO

from heretic.errors import HereticError
from heretic.system.secrets import masked
from heretic.worker.protocol import Failure

_PATIENCE = 5.0
"""Seconds that the last messages may take to be read."""


class Messages:
    """Writes messages in a thread of its own, so that a reader that is slow holds nothing up.

    Args:
        stream: Where to.
        lost: Called once if nobody reads any more.
    """

    def __init__(self, stream: BinaryIO, lost: Callable[[], None]) -> None:
        self._stream, self._lost = stream, lost
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread = Thread(target=self._write, daemon=True)
        self._thread.start()

    def say(self, kind: str, content: Mapping[str, Any]) -> None:
        """Say that something is so; secrets are masked."""
        self._put(masked(json.dumps({"type": kind, **content})))

    def answer(self, number: int, result: Mapping[str, Any]) -> None:
        """Answer a request. Replies of models stay as they are."""
        self._put(json.dumps({"type": "answer", "id": number, "result": result}))

    def fail(self, number: int | None, failure: Failure) -> None:
        """Answer a request, or a line without a number, by an error."""
        self.say("answer", {"id": number, "error": asdict(failure)})

    def piece(self, number: int, text: str) -> None:
        """Say the next piece of a reply."""
        self._put(json.dumps({"type": "piece", "id": number, "text": text}))

    def close(self) -> None:
        """Write what is left, if somebody reads it soon."""
        self._queue.put(None)
        self._thread.join(_PATIENCE)

    def _put(self, line: str) -> None:
        self._queue.put(line.encode() + b"\n")

    def _write(self) -> None:
        is_lost = False
        while (line := self._queue.get()) is not None:
            if is_lost:
                continue
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):  # the server is gone
                is_lost = True
                self._lost()


def failure_of(error: HereticError) -> Failure:
    """What a request's answer says of an error that the user can fix."""
    return Failure(type(error).__name__, error.message, error.remedy)


def read_lines(stream: BinaryIO, take: Callable[[bytes], None], end: Callable[[], None]) -> Thread:
    """Hand each line of a stream to `take`, in a thread of its own; and say when it ends."""

    def work() -> None:
        with suppress(OSError, ValueError):
            for line in stream:
                if line.strip():
                    take(line)
        end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    return thread
