"""Signals, and terminals that go away: how this process ends, and what it does before.

| signal | what happens |
| --- | --- |
| SIGINT (Ctrl+C) | `KeyboardInterrupt`, but not in the middle of an import; a second one at once |
| SIGTERM | the same, and nobody is asked anything any more; exit status 143 |
| SIGHUP (the terminal was closed) | within `outlives_terminal` the work goes on as without a |
| | terminal; elsewhere as SIGTERM, with exit status 129 |

Loads nothing but the standard library: it is used before anything else is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

TYPE_CHECKING = False  # the module typing takes time, in which a signal would find no handler
if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Any

_RETRY, _RETRIES = 0.05, 20
"""Seconds after which a signal that came in the middle of an import is looked at again; how often.

A search that is interrupted goes on to its menu, where a module imported by half would fail. Before
that the process just ends, so a long import need not be waited for.
"""

_IMPORT = "<frozen importlib._bootstrap>"

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Windows lacks the last."""

_MESSAGES = {"SIGTERM": "Terminated.", "SIGHUP": "The terminal was closed."}


class _State:
    """What signals have said to this process.

    Attributes:
        bottom: The function below which frames are none of our business.
        ended_by: The signal that ends the process, other than SIGINT.
        terminal_gone: Whether the terminal was closed.
        outlives: Whether the work goes on when the terminal is closed.
        broke_import: Whether a module was left imported by half. Whatever uses it next may fail,
            with an error that no longer leads to the interruption.
        waits: How often a signal has waited for the end of an import.
        again: Whether the next signal is one that waited, not a new one.
        timer: Sends a signal that waits.
    """

    def __init__(self, bottom: CodeType | None = None) -> None:
        self.bottom = bottom
        self.ended_by: int | None = None
        self.terminal_gone = False
        self.outlives = False
        self.broke_import = False
        self.waits = 0
        self.again = False
        self.timer: threading.Timer | None = None

    def cancel(self) -> None:
        """Let no signal wait any more."""
        if self.timer is not None:
            self.timer.cancel()
        self.waits = 0


_state = _State()


def is_ending() -> bool:
    """Whether nobody can be asked any more: the terminal is gone, or a signal ends the process."""
    return _state.terminal_gone or _state.ended_by is not None


def exit_status(status: int) -> int:
    """The exit status: `status`, or that of the signal which ended the process."""
    return status if _state.ended_by is None else 128 + _state.ended_by


def farewell() -> str:
    """What to say when an interruption ends the process."""
    name = "" if _state.ended_by is None else signal.Signals(_state.ended_by).name
    return _MESSAGES.get(name, "Interrupted.")


def is_interruption(error: BaseException) -> bool:
    """Whether an error ends what was interrupted.

    It may have come while an interruption waited for the end of an import.
    """
    from heretic.errors import is_of_interruption

    return _state.broke_import or bool(_state.waits) or is_of_interruption(error)


@contextmanager
def outlives_terminal(wanted: bool = True) -> Iterator[None]:
    """Let the work of the block go on when the terminal is closed: its result was asked for."""
    before = _state.outlives
    _state.outlives = before or wanted
    try:
        yield
    finally:
        _state.outlives = before


@contextmanager
def handled_signals(bottom: CodeType) -> Iterator[None]:
    """Handle the signals while the context lasts, if this is the main thread.

    A signal that the parent has switched off (`nohup`) stays off.

    Args:
        bottom: The function that uses this context; it may itself run within an import.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.__dict__.update(vars(_State(bottom)))
    before: dict[int, Any] = {}
    for number in [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]:
        current = signal.getsignal(number)
        if current in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = current
            signal.signal(number, _handle)
    hook = sys.unraisablehook
    sys.unraisablehook = partial(_keep_interruption, hook)
    try:
        yield
    finally:
        _state.cancel()
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    again, _state.again = _state.again, False
    if number == getattr(signal, "SIGHUP", None):
        _state.terminal_gone = True
        if _state.outlives:
            return
    if number != signal.SIGINT:
        _state.ended_by = number
    first_or_waited = again or not _state.waits  # somebody who presses Ctrl+C twice insists
    importing = _is_importing(frame)
    if importing and first_or_waited and _state.waits < _RETRIES:
        _state.waits += 1
        _send_later(number)
        return
    _state.cancel()
    _state.broke_import = _state.broke_import or importing
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: half of it would stay, and fail when it is used."""
    while frame is not None and frame.f_code is not _state.bottom:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False


def _send_later(number: int) -> None:
    timer = threading.Timer(_RETRY, _send_again, (number,))
    timer.daemon = True
    _state.timer = timer
    timer.start()


def _send_again(number: int) -> None:
    """Send the signal to the main thread, which ends what it waits for."""
    _state.again = True
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        with suppress(OSError):  # the process is at its end
            signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)


def _keep_interruption(
    otherwise: Callable[[Any], object], unraisable: sys.UnraisableHookArgs
) -> None:
    """Deliver an interruption once more that came where Python drops exceptions.

    Such places are callbacks from C, finalizers and weak references.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _send_later(_state.ended_by or signal.SIGINT)
    else:
        otherwise(unraisable)


def somebody_is_there() -> bool:
    """Whether somebody can answer on the terminal of standard input.

    Nobody can in a cell of a notebook, whose pseudo-terminal takes no keys; without a controlling
    terminal; in the background, where a question would stop the process; and once the terminal is
    gone.
    """
    if is_ending() or in_notebook() or sys.stdin is None:
        return False
    if not hasattr(os, "tcgetpgrp"):  # Windows
        return True
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


def in_notebook() -> bool:
    """Whether this process was started from a cell of a notebook: by what kernels leave behind.

    Every Jupyter kernel has the first variable from its launcher, or the others from ipykernel.
    """
    pagers = {os.environ.get("PAGER"), os.environ.get("GIT_PAGER")}
    of_ipykernel = pagers == {"cat"} and os.environ.get("TERM") == "xterm-color"
    return "JPY_PARENT_PID" in os.environ or of_ipykernel
