"""`heretic export RUN`: save or upload a trial of a run that has been searched."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options
from heretic.errors import RunError

if TYPE_CHECKING:
    from heretic.config.settings import Settings
    from heretic.records.trial import Trial


@click.command("export", cls=SettingsCommand)
@click.argument("run")
@click.option(
    "--trust-plugins",
    is_flag=True,
    help="Load the scorers from outside Heretic that the run names: their code is run.",
)
@settings_options
def command(run: str, trust_plugins: bool, options: SettingsOptions) -> int:
    """Choose a trial of RUN, then save, upload, chat or run benchmarks.

    RUN is a run folder, or its number in `heretic runs`. No search is started. --trial-index,
    --model-action save, --save-directory and --export-strategy together answer all questions in
    advance.
    """
    started = perf_counter()
    path = options.searched_run(run)
    from heretic.cli.display.text import make_console
    from heretic.cli.menu.answers import asks_nothing
    from heretic.cli.opening import prepared, reopened_run
    from heretic.cli.signals import outlives_terminal
    from heretic.cli.workflow import choose

    with (
        reopened_run(path, options, make_console(), started, trust_plugins=trust_plugins) as opened,
        outlives_terminal(asks_nothing(opened.settings)),
    ):
        check_rows(opened.run.folder.read_trials(), opened.settings)
        choose(prepared(opened), opened.display)
    return 0


def check_rows(trials: Iterable[Trial], settings: Settings) -> None:
    """Say before the model is loaded that there is no trial to choose, or not the one asked for.

    Raises:
        SettingsError: The front has no such row.
        RunError: No trial has completed, and neither settings nor a terminal can ask for more.
    """
    from heretic.cli.display.text import is_interactive
    from heretic.records.selection import trial_in_row
    from heretic.records.trial import front as front_of

    if settings.n_additional_trials:  # they come before the choice
        return
    front = front_of(trials)
    if settings.trial_index is not None:
        trial_in_row(front, settings.trial_index)
    elif not front and not is_interactive():
        raise RunError(
            "No trial of this run has completed yet.",
            remedy="Go on with the search, or pass --n-additional-trials N.",
        )
