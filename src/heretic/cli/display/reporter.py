"""Progress on the screen: a live panel on a terminal, plain lines everywhere else.

A display is a `Reporter` and a context manager. Whatever ends the block, an exception included, the
live panel is taken down and the cursor comes back.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console

from heretic.cli.display.panel import RichReporter
from heretic.cli.display.plain import PlainReporter
from heretic.events import Event, Reporter

__all__ = ["Display", "PlainReporter", "RichReporter", "Tee", "make_reporter"]


class Display(Protocol):
    """A reporter that owns the screen while something runs."""

    def emit(self, event: Event) -> None:
        """Show one event."""

    def close(self) -> None:
        """Take a live panel down, before a question or at the end; may be called at any time."""

    def __enter__(self) -> Self:
        """The display itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""


def make_reporter(console: Console) -> Display:
    """The live panel if `console` is a capable terminal, plain lines if not."""
    if console.is_terminal and not console.is_dumb_terminal:
        return RichReporter(console)
    return PlainReporter(console)


class Tee:
    """A reporter that passes every event to several, e.g. a display and a log file."""

    def __init__(self, *reporters: Reporter) -> None:
        self.reporters = reporters

    def emit(self, event: Event) -> None:
        """Pass the event on, in order."""
        for reporter in self.reporters:
            reporter.emit(event)
