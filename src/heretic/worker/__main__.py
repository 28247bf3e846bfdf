"""`python -m heretic.worker`: a worker on standard input and output; see `heretic.worker.protocol`.

Only messages go to standard output. What libraries print goes to standard error, as does the log
until a run folder has one.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from contextlib import suppress
from types import FrameType
from typing import BinaryIO

from heretic.errors import HereticError
from heretic.runs.log import SafeFormatter
from heretic.worker.board import Board
from heretic.worker.inbox import Inbox
from heretic.worker.protocol import (
    Cancel,
    Failure,
    NumberedError,
    Pause,
    ProtocolError,
    Quit,
    Resume,
    Stop,
    decoded,
)
from heretic.worker.wire import Messages, failure_of, read_lines

_INPUT, _OUTPUT, _ERROR = 0, 1, 2
_ENDING = Failure("Cancelled", "The worker ends.", "Start another one.")


def main() -> int:
    """Work until standard input ends, or `Quit`; returns the exit status.

    Returns:
        0 after that, 143 after SIGTERM.
    """
    requests, answers = _own_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the server, which asks
    inbox = Inbox()
    signals: list[int] = []

    def terminated(number: int, frame: FrameType | None) -> None:
        del frame
        signals.append(number)
        inbox.end_now()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminated)
    _quieten()
    messages = Messages(answers, lost=inbox.close)
    board = Board(inbox, messages)

    def take(line: bytes) -> None:
        _take(line, inbox, messages)
        board.say()

    read_lines(requests, take, inbox.close)
    with suppress(KeyboardInterrupt):
        from heretic.worker.work import Worker  # takes seconds, in which requests may come

        Worker(inbox, messages, board).run()
    for number in inbox.rest():
        messages.fail(number, _ENDING)
    messages.close()
    return 128 + signal.SIGTERM if signals else 0


def _own_streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output, which nothing else in this process can read or write then."""
    requests = os.fdopen(os.dup(_INPUT), "rb")
    answers = os.fdopen(os.dup(_OUTPUT), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, _INPUT)
    os.close(empty)
    os.dup2(_ERROR, _OUTPUT)
    sys.stdin = open(_INPUT, closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stdout = sys.stderr
    return requests, answers


def _quieten() -> None:
    """Keep what libraries say to their programmers out of standard error, and log there."""
    for library in ("HF_HUB", "DATASETS"):  # read when the library is imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        for kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("heretic").addHandler(handler)


def _take(line: bytes, inbox: Inbox, messages: Messages) -> None:
    """Put a request where it belongs, or answer what is wrong with it."""
    try:
        number, request = decoded(line)
    except NumberedError as error:
        messages.fail(error.number, failure_of(error))
        return
    except ProtocolError as error:
        messages.fail(None, failure_of(error))
        return
    if not isinstance(request, Pause | Resume | Stop | Cancel | Quit):
        inbox.put(number, request)
        return
    try:
        inbox.control(request)
    except HereticError as error:
        messages.fail(number, failure_of(error))
    else:
        messages.answer(number, {})


if __name__ == "__main__":
    sys.exit(main())
