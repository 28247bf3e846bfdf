"""Standard streams that never raise: closed, broken or full ones must not cost what is computed.

Loads nothing but the standard library: it is used before anything else is imported.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_INPUT, _OUTPUT, _ERROR = 0, 1, 2


class LastingOutput(io.FileIO):
    """An output that drops what it cannot write, and remembers why.

    Attributes:
        failure: The first error; None while everything has been written.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: object) -> int:
        """Write the bytes, or drop them after a failure; always claims to have written."""
        while self.failure is None:
            try:
                count = super().write(data)  # type: ignore[arg-type]
            except OSError as error:
                self.failure = error
            else:
                if count is not None:
                    return count
                select.select([], [self], [])  # a pipe that does not block, and is full
        return len(memoryview(data))  # type: ignore[arg-type]


class Streams:
    """Standard output and error of this process while `lasting_streams` holds them."""

    def __init__(self, output: LastingOutput | None, output_closed: bool) -> None:
        self._output = output
        self._output_closed = output_closed

    def loss(self, *, only: bool) -> str | None:
        """Why standard output lacks something that was printed; None if nobody misses it.

        A reader that closed its pipe (`| head`) has what it wanted.

        Args:
            only: Whether there is no other result than what is printed. If there is one, output
                that was closed from the start is not missed.
        """
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        if self._output_closed:
            return "it is closed" if only else None
        failure = self._output.failure if self._output is not None else None
        if failure is None or failure.errno in (errno.EPIPE, errno.EIO):
            return None
        return failure.strerror or str(failure)


@contextmanager
def lasting_streams() -> Iterator[Streams]:
    """Let standard output and error drop what cannot be written while the context lasts.

    A stream that somebody replaced, such as a test or a notebook, stays as it is. A descriptor that
    is closed is opened on the null device: otherwise the next file that is opened would take its
    number, and whatever a library prints would end up in that file.
    """
    closed = [number for number in (_INPUT, _OUTPUT, _ERROR) if _is_closed(number)]
    for _ in closed:  # from the lowest number up, as the system hands them out
        os.open(os.devnull, os.O_RDWR)
    before = sys.stdin, sys.stdout, sys.stderr
    if sys.stdin is None:
        sys.stdin = open(_INPUT, closefd=False)  # noqa: SIM115 - lives as long as the process
    output = _replaced("stdout", _OUTPUT)
    _replaced("stderr", _ERROR)
    try:
        yield Streams(output, before[1] is None)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def _replaced(name: str, descriptor: int) -> LastingOutput | None:
    """Replace a standard stream by a lasting one; None if it is not the process's own."""
    stream = getattr(sys, name)
    if stream is not getattr(sys, f"__{name}__"):
        return None
    raw = LastingOutput(descriptor)
    if os.name == "nt" and raw.isatty():  # a console there takes text, not bytes
        return None
    lasting = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors=getattr(stream, "errors", "backslashreplace"),
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )
    if stream is not None:
        with suppress(OSError, ValueError):
            stream.flush()
    setattr(sys, name, lasting)
    return raw
