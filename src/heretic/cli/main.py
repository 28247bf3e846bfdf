"""The command line: which commands there are. The module of the chosen one is loaded late."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import click

from heretic import __version__
from heretic.cli.options import write_settings


@dataclass(frozen=True)
class CommandEntry:
    """A command that is not loaded yet; `command` in `module` is the click command."""

    module: str
    summary: str


DEFAULT_COMMAND = "run"

COMMANDS = {
    "demo": CommandEntry("heretic.cli.demo_command", "The whole job on a small model, offline."),
    "evaluate": CommandEntry("heretic.cli.evaluate_command", "Score a model against its original."),
    "apply": CommandEntry("heretic.cli.apply_command", "Edit a model by a plan, without a search."),
    "chat": CommandEntry("heretic.cli.chat_command", "Chat with a trial's edited model."),
    "benchmark": CommandEntry(
        "heretic.cli.benchmark_command", "Run benchmarks on a trial and on its original."
    ),
    "export": CommandEntry("heretic.cli.export_command", "Save or upload a trial of a run."),
    "reproduce": CommandEntry(
        "heretic.cli.reproduce_command", "Make a model again from its reproduce.json."
    ),
    "inspect": CommandEntry(
        "heretic.cli.inspect_command", "What is edited in a model, from its configuration alone."
    ),
    "classify": CommandEntry(
        "heretic.cli.classify_command", "Say of replies in a file whether they refuse."
    ),
    "runs": CommandEntry("heretic.cli.runs_command", "List run folders and their state."),
    "config": CommandEntry("heretic.cli.config_command", "Print every setting as TOML."),
    DEFAULT_COMMAND: CommandEntry("heretic.cli.run_command", "Search for an edit (the default)."),
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
