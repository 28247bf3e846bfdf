"""Entry point: what the installed command, and programs that use Heretic, call."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from heretic.cli import INTERRUPTED
from heretic.cli.signals import exit_status, farewell, handled_signals, is_interruption
from heretic.cli.streams import Streams, lasting_streams


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; errors are raised. See `heretic.cli.main.run`."""
    from heretic.cli import main as command_line

    return command_line.run(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; errors are printed, and signals handled. See `heretic.cli.main.main`.

    Returns:
        The exit status: as `heretic.cli.main.main`; 130 after Ctrl+C, 143 after SIGTERM, 129 if the
        terminal was closed before the work was done.
    """
    with lasting_streams() as streams, handled_signals(main.__code__):
        try:
            from heretic.cli import main as command_line

            status = command_line.main(arguments)
            status = _told_of_loss(streams, status, only=command_line.only_prints(arguments))
        except KeyboardInterrupt:
            status = _interrupted()
        except Exception as error:
            if not is_interruption(error):
                raise
            status = _interrupted()
        return exit_status(status)


def _interrupted() -> int:
    print(farewell(), file=sys.stderr)  # noqa: T201 - the program ends here
    return INTERRUPTED


def _told_of_loss(streams: Streams, status: int, *, only: bool) -> int:
    """The exit status of a command, after a line that says what was printed in vain.

    Args:
        only: Whether the command has no other result than what it prints.
    """
    loss = streams.loss(only=only)
    if loss is None:
        return status
    print(f"Standard output was not written: {loss}.", file=sys.stderr)  # noqa: T201 - as above
    return status or (2 if only else 0)
