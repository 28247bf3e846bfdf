"""The command line: which commands there are. The module of the chosen one is loaded late."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from heretic import __version__
from heretic.cli import INTERRUPTED
from heretic.cli.options import nearest_option, write_settings
from heretic.errors import HereticError, SettingsError


@dataclass(frozen=True)
class CommandEntry:
    """A command that is not loaded yet; `command` in `module` is the click command."""

    module: str
    summary: str


DEFAULT_COMMAND = "run"

COMMANDS = {
    "demo": CommandEntry("heretic.cli.commands.demo", "The whole job on a small model, offline."),
    "evaluate": CommandEntry(
        "heretic.cli.commands.evaluate", "Score a model against its original."
    ),
    "apply": CommandEntry(
        "heretic.cli.commands.apply", "Edit a model by a plan, without a search."
    ),
    "chat": CommandEntry("heretic.cli.commands.chat", "Chat with a trial's edited model."),
    "benchmark": CommandEntry(
        "heretic.cli.commands.benchmark", "Run benchmarks on a trial and on its original."
    ),
    "export": CommandEntry("heretic.cli.commands.export", "Save or upload a trial of a run."),
    "reproduce": CommandEntry(
        "heretic.cli.commands.reproduce", "Make a model again from its reproduce.json."
    ),
    "inspect": CommandEntry(
        "heretic.cli.commands.inspect", "What is edited in a model, from its configuration alone."
    ),
    "classify": CommandEntry(
        "heretic.cli.commands.classify", "Say of replies in a file whether they refuse."
    ),
    "runs": CommandEntry("heretic.cli.commands.runs", "List run folders and their state."),
    "config": CommandEntry("heretic.cli.commands.config", "Print every setting as TOML."),
    DEFAULT_COMMAND: CommandEntry("heretic.cli.commands.run", "Search for an edit (the default)."),
}

_OWN_OPTIONS = ("--help", "-h", "--version")

_HELP = """Find, by itself, the smallest edit of MODEL that removes a learned behaviour (by default,
declining to answer) and leaves the rest as it was.

MODEL is a Hub id or a folder; a folder that has a command's name is written ./name. Options go
before or after it. They can also be set in config.toml (`heretic config` prints one) and as
HERETIC_* variables; the command line counts most."""


class HereticGroup(click.Group):
    """The commands; a first word that is none of them belongs to the default command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the help."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        del ctx
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = importlib.import_module(entry.module).command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command first where no command is named."""
        if not args or (args[0] not in COMMANDS and args[0] not in _OWN_OPTIONS):
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write both ways to call it."""
        formatter.write_usage(ctx.command_path, "MODEL [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [OPTIONS] ...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write commands, options, settings, without loading any command."""
        rows = [(name, entry.summary) for name, entry in COMMANDS.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        own = [parameter.get_help_record(ctx) for parameter in self.get_params(ctx)]
        config = ("--config FILE", "Read settings from this TOML file instead of config.toml.")
        with formatter.section("Options"):
            formatter.write_dl([config, *(record for record in own if record)])
        write_settings(formatter)


@click.group(
    cls=HereticGroup,
    name="heretic",
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="heretic", message="%(prog)s %(version)s")
def heretic() -> None:
    """Commands register above; nothing else happens here."""


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
        from heretic.cli.display.text import safe  # loads rich, which the help does without

        print(safe(f"Error: {error}"), file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED


def _as_settings_error(error: click.ClickException, tokens: Sequence[str]) -> SettingsError:
    """A wrong command line, in one line with its remedy."""
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
