"""Entry point: what the installed command, and programs that use Heretic, call."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from heretic.cli import INTERRUPTED


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; errors are raised. See `heretic.cli.main.run`."""
    from heretic.cli import main as command_line

    return command_line.run(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; errors are printed. See `heretic.cli.main.main`."""
    try:
        from heretic.cli import main as command_line
    except KeyboardInterrupt:  # in the first moments, while modules load
        print("Interrupted.", file=sys.stderr)  # noqa: T201 - the program ends here
        return INTERRUPTED
    return command_line.main(arguments)
