"""Progress on the screen: a live panel on a terminal, plain lines everywhere else."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console

from heretic.cli.display.panel import RichReporter
from heretic.cli.display.plain import PlainReporter
from heretic.cli.display.progress import ReporterBase
from heretic.cli.signals import in_notebook
from heretic.events import Event, Reporter

__all__ = ["Display", "LoggedDisplay", "PlainReporter", "RichReporter", "make_reporter"]


class Display(Reporter, Protocol):
    """A reporter that owns the screen while something runs."""

    @property
    def console(self) -> Console:
        """The screen, for text that stays. Close the display before printing to it."""

    def close(self) -> None:
        """Take a live panel down, before a question or at the end; may be called at any time."""


def make_reporter(console: Console) -> ReporterBase:
    """The live panel if `console` is a capable terminal, plain lines if not.

    A notebook shows every movement of the panel as a line of its own.

    The display is a context manager. Whatever ends the block, an exception included, the live panel
    is taken down and the cursor comes back.
    """
    if console.is_terminal and not console.is_dumb_terminal and not in_notebook():
        return RichReporter(console)
    return PlainReporter(console)


class LoggedDisplay:
    """A display whose events are written to files as well.

    Args:
        reporter: Hands events to the display and to the files.
    """

    def __init__(self, display: Display, reporter: Reporter) -> None:
        self.console = display.console
        self._display = display
        self._reporter = reporter

    def emit(self, event: Event) -> None:
        """Show the event, and write it."""
        self._reporter.emit(event)

    def close(self) -> None:
        """Take a live panel down; files stay open."""
        self._display.close()
