"""The commands of the command line. Only the module of the command that runs is loaded."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import click

from heretic.cli.options import common_settings, nearest_option, write_settings
from heretic.cli.signals import is_interruption
from heretic.cli.version import show_version
from heretic.errors import HereticError, SettingsError
from heretic.system.display import safe
from heretic.system.distributions import PACKAGE, mixture


@dataclass(frozen=True)
class CommandEntry:
    """A command that is not loaded yet.

    Attributes:
        module: The module that holds the click command, under the name `command`.
        summary: The line in the help.
    """

    module: str
    summary: str


DEFAULT_COMMAND = "run"

COMMANDS = {
    "demo": CommandEntry(
        "heretic.cli.commands.demo", "Try Heretic on a small model, without the Hub."
    ),
    "evaluate": CommandEntry(
        "heretic.cli.commands.evaluate", "Score a model against its original."
    ),
    "compare": CommandEntry(
        "heretic.cli.commands.compare", "Show how a model differs from its original."
    ),
    "audit": CommandEntry(
        "heretic.cli.commands.audit", "Check a saved model against its base and its documents."
    ),
    "apply": CommandEntry(
        "heretic.cli.commands.apply", "Apply a plan to a model, without a search."
    ),
    "chat": CommandEntry(
        "heretic.cli.commands.chat", "Chat with a model, or with a trial of a run."
    ),
    "benchmark": CommandEntry(
        "heretic.cli.commands.benchmark", "Run benchmarks on a trial and on the original."
    ),
    "validate": CommandEntry(
        "heretic.cli.commands.validate", "Score controls of a trial: what does its edit carry?"
    ),
    "export": CommandEntry("heretic.cli.commands.export", "Save or upload a trial of a run."),
    "gguf": CommandEntry(
        "heretic.cli.commands.gguf", "Make GGUF files of a saved model, and score them."
    ),
    "reproduce": CommandEntry(
        "heretic.cli.commands.reproduce", "Rebuild a model from its reproduce.json."
    ),
    "inspect": CommandEntry(
        "heretic.cli.commands.inspect", "Show what would be edited, from the configuration alone."
    ),
    "doctor": CommandEntry(
        "heretic.cli.commands.doctor", "Look at this machine: what will fail, what would fit."
    ),
    "classify": CommandEntry(
        "heretic.cli.commands.classify", "Say whether the replies in a file refuse."
    ),
    "directions": CommandEntry(
        "heretic.cli.commands.directions", "Write a run's directions as a control vector (GGUF)."
    ),
    "look": CommandEntry(
        "heretic.cli.commands.look", "Look into a run's directions: tokens, cosines, layers."
    ),
    "report": CommandEntry("heretic.cli.commands.report", "Write a page about a run, or several."),
    "runs": CommandEntry("heretic.cli.commands.runs", "List run folders and their state."),
    "batch": CommandEntry(
        "heretic.cli.commands.batch", "Run many models or settings as one job that can go on."
    ),
    "ui": CommandEntry("heretic.cli.commands.ui", "Do all this on a local page in the browser."),
    "config": CommandEntry("heretic.cli.commands.config", "Print every setting as TOML."),
    "migrate": CommandEntry(
        "heretic.cli.commands.migrate", "Convert settings of heretic-llm, another project."
    ),
    DEFAULT_COMMAND: CommandEntry(
        "heretic.cli.commands.run", "Search for the edit of a model (the default)."
    ),
}

_HELP_ALL = "--help-all"
_OWN_OPTIONS = ("--help", "-h", _HELP_ALL, "--version")

_OF_THE_SYSTEM = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EIO,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
}
"""Errors at a path that say more about the machine, or about what was typed, than about a bug."""

_PRINTING = {"audit", "classify", "compare", "config", "doctor", "evaluate", "inspect"} | {
    "migrate",
    "runs",
}
"""Commands that have no other result than what they print."""

_HELP = """Automatically find the smallest edit of MODEL that removes one learned behaviour (by
default, declining to answer) and leaves everything else as it was.

MODEL is a Hub id, a folder or a GGUF file. Write ./NAME for a folder that has the name of a
command. Options stand before or after MODEL."""

_SETTINGS = """Every setting is an option: `heretic --help-all` lists them. Settings can also be
given in config.toml (`heretic config` prints one) and as HERETIC_* variables; the command line
takes precedence."""

_EXAMPLE = (
    "heretic org/model --n-trials 100 --trial-index 0 --model-action save \\",
    "    --export-strategy merge --save-directory edited",
)
"""A whole job, without a question."""


class HereticGroup(click.Group):
    """Commands that are loaded when they run. Without a command's name, the default one runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order in which the help lists them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, loaded now; None if there is none."""
        del ctx
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = importlib.import_module(entry.module).command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the default command where no command is named, and read `help COMMAND`."""
        if args[:1] == ["help"]:
            args = [*(name for name in args[1:2] if name in COMMANDS), "--help"]
        if _HELP_ALL in args[: args.index("--") if "--" in args else None]:
            args = [_HELP_ALL]
        if not args or (args[0] not in COMMANDS and args[0] not in _OWN_OPTIONS):
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the usage without and with a command's name."""
        formatter.write_usage(ctx.command_path, "MODEL [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [OPTIONS] ...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write commands, options and an example; after `--help-all` every setting.

        No command is loaded for this.
        """
        rows = [(name, entry.summary) for name, entry in COMMANDS.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        own = [parameter.get_help_record(ctx) for parameter in self.get_params(ctx)]
        config = ("--config FILE", "Read settings from this TOML file instead of config.toml.")
        options = [config, *(record for record in own if record)]
        everything = bool(ctx.meta.get(_HELP_ALL))
        with formatter.section("Options"):
            formatter.write_dl(options if everything else [*common_settings(), *options])
        if everything:
            write_settings(formatter)
            return
        formatter.write_paragraph()
        formatter.write_text(_SETTINGS)
        with formatter.section("Example"):
            for line in _EXAMPLE:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def _show_everything(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    del option
    if given:
        ctx.meta[_HELP_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


@click.group(
    cls=HereticGroup,
    name="heretic",
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    _HELP_ALL,
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_everything,
    help="Show every setting as well, and exit.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_version,
    help="Show versions and the device, and exit.",
)
def heretic() -> None:
    """Do nothing: the group runs the command."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, without touching the process.

    Args:
        arguments: What follows the program's name; by default `sys.argv[1:]`.

    Returns:
        The exit status: 0 if the work was done, 2 if a reproduced model differs, 130 if the user
        interrupted it and the results so far are kept.

    Raises:
        HereticError: An error that the user can fix, such as a wrong option.
        KeyboardInterrupt: The user interrupted it.
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = heretic.main(args=tokens, prog_name="heretic", standalone_mode=False)
    except click.ClickException as error:
        raise _as_settings_error(error, tokens) from error
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except OSError as error:
        if error.filename is None or error.errno not in _OF_THE_SYSTEM:
            raise
        raise HereticError(
            f"{os.fsdecode(error.filename)}: {error.strerror}.",
            remedy="Check the path, its permissions and the disk.",
        ) from error
    return status if isinstance(status, int) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and print what went wrong.

    Returns:
        The exit status: as `run`, and 2 after an error that the user can fix. A bug keeps its
        traceback, and Python then exits with 1.

    Raises:
        KeyboardInterrupt: The user interrupted it.
    """
    sys.excepthook = _show_bug
    _hush_libraries()
    _tell_of_mixture(arguments)
    try:
        return run(arguments)
    except HereticError as error:
        if is_interruption(error):  # such as a plugin that was not imported to its end
            raise KeyboardInterrupt from error
        print(safe(f"Error: {error}"), file=sys.stderr)
        return error.exit_status


def _tell_of_mixture(arguments: Sequence[str] | None) -> None:
    """Say in one line that another package `heretic` is installed, before a command runs.

    Help is not kept waiting, and `--version` looks by itself, and further.
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if any(token in _OWN_OPTIONS for token in tokens):
        return
    warning = mixture(prefix=PACKAGE)
    if warning:
        print(safe(f"Warning: {warning}"), file=sys.stderr)


def _hush_libraries() -> None:
    """Keep what libraries say to their programmers, and each of their retries, from the screen.

    Whoever asks Python or a library for its warnings gets them.
    """
    for library in ("HF_HUB", "DATASETS"):  # read when the library is imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if not sys.warnoptions:
        for kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)


def only_prints(arguments: Sequence[str] | None = None) -> bool:
    """Whether a command line has no other result than what it prints."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    helps = any(token in _OWN_OPTIONS for token in tokens)
    return helps or (bool(tokens) and tokens[0] in _PRINTING)


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, without secrets and control characters."""
    print(safe("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _as_settings_error(error: click.ClickException, tokens: Sequence[str]) -> SettingsError:
    """What is wrong with a command line, in one line with the remedy."""
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and context is not None:
        nearest = nearest_option(error.option_name, context.command, context)
        meant = "" if nearest is None else f"Did you mean {nearest}? "
        return SettingsError(
            f"Unknown option {error.option_name}.",
            remedy=f"{meant}`{context.command_path} --help` lists all options.",
        )
    message = " ".join(error.format_message().split())  # choices come in lines of their own
    if not message.endswith((".", "?")):
        message += "."
    late = next((token for token in tokens[1:] if token in COMMANDS), None)
    if "extra argument" in message and late is not None:
        return SettingsError(message, remedy=f"The command comes first: heretic {late} ...")
    path = context.command_path if context is not None else "heretic"
    return SettingsError(message, remedy=f"See `{path} --help`.")
