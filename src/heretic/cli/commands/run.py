"""`heretic MODEL`: the main job."""

from __future__ import annotations

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options


@click.command("run", cls=SettingsCommand, show_settings=True)
@click.argument("model", required=False)
@settings_options
def command(model: str | None, options: SettingsOptions) -> int:
    """Search for the edit of MODEL (a Hub id or a folder), then save, upload or chat."""
    settings = options.load(model=model)
    if settings.evaluate_model:
        from heretic.cli.commands.evaluate import evaluate

        return evaluate(settings, as_json=False)
    from heretic.cli.display.text import make_console
    from heretic.cli.opening import go_on_or_not, held_run, prepared
    from heretic.cli.workflow import search_and_choose

    console = make_console()
    with held_run(settings, console) as place:
        if not go_on_or_not(settings, place, console):
            return 0
        session = prepared(settings, place, console)
        return search_and_choose(session, place, console)
