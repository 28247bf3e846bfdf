"""`heretic MODEL`: search for an edit, then save, upload, chat or run benchmarks."""

from __future__ import annotations

from time import perf_counter

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options


@click.command("run", cls=SettingsCommand, show_settings=True)
@click.argument("model", required=False)
@settings_options
def command(model: str | None, options: SettingsOptions) -> int:
    """Search for the edit of MODEL, then save it, upload it, chat with it or run benchmarks."""
    started = perf_counter()
    settings = options.load(model=model)
    if settings.evaluate_model:
        from heretic.cli.commands.evaluate import evaluate

        return evaluate(settings, as_json=False)
    from heretic.cli.display.text import make_console
    from heretic.cli.menu.answers import asks_nothing
    from heretic.cli.opening import held_run, prepared, settle_existing_run
    from heretic.cli.signals import outlives_terminal
    from heretic.cli.workflow import search_and_choose

    may_begin = settings.checkpoint_action != "continue"
    with (
        outlives_terminal(asks_nothing(settings)),
        held_run(settings, make_console(), started, may_begin=may_begin) as opened,
    ):
        if not settle_existing_run(opened):
            return 0
        return search_and_choose(prepared(opened), opened.display)
