"""Entry point: runs a command line and turns what comes out of it into an exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from heretic.cli import INTERRUPTED
from heretic.errors import HereticError


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, without touching the process.

    Args:
        arguments: What follows the program's name; by default `sys.argv[1:]`.

    Returns:
        0 if the work was done, 130 if it was interrupted and what was found is kept.

    Raises:
        HereticError: Something the user can mend, a wrong option included.
        KeyboardInterrupt: Interrupted.
    """
    import click

    from heretic.cli.main import heretic

    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = heretic.main(args=tokens, prog_name="heretic", standalone_mode=False)
    except click.ClickException as error:
        raise _as_settings_error(error, tokens) from error
    except click.Abort as error:
        raise KeyboardInterrupt from error
    return status if isinstance(status, int) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and say what went wrong, as a program does.

    Returns:
        The exit status: 0 done, 2 the user can fix it, 130 interrupted. A bug keeps its
        traceback, and Python then exits with 1.
    """
    try:
        return run(arguments)
    except HereticError as error:
        from heretic.cli.text import safe

        print(safe(f"Error: {error}"), file=sys.stderr)  # noqa: T201 - the last word of the program
        return error.exit_status
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)  # noqa: T201
        return INTERRUPTED


def _as_settings_error(error: Exception, tokens: Sequence[str]) -> HereticError:
    """A wrong command line, in one line with its remedy."""
    import click

    from heretic.cli.main import COMMANDS
    from heretic.cli.options import nearest_option
    from heretic.errors import SettingsError

    assert isinstance(error, click.ClickException)
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and context is not None:
        nearest = nearest_option(error.option_name, context.command, context)
        return SettingsError(
            f"Unknown option {error.option_name}.",
            remedy=f"Did you mean {nearest}? `{context.command_path} --help` lists all.",
        )
    message = error.format_message()
    if not message.endswith((".", "?")):
        message += "."
    late = next((token for token in tokens[1:] if token in COMMANDS), None)
    if "extra argument" in message and late is not None:
        return SettingsError(message, remedy=f"The command comes first: heretic {late} ...")
    path = context.command_path if context is not None else "heretic"
    return SettingsError(message, remedy=f"See `{path} --help`.")
