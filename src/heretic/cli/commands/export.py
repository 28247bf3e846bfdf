"""`heretic export RUN`: save or upload a trial of a run that has been searched."""

from __future__ import annotations

from time import perf_counter

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options


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
        choose(prepared(opened), opened.display)
    return 0
