"""`heretic chat MODEL` or `heretic chat RUN --trial-index N`: talk to a model."""

from __future__ import annotations

from pathlib import Path

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options


@click.command("chat", cls=SettingsCommand)
@click.argument("model")
@settings_options
def command(model: str, options: SettingsOptions) -> int:
    """Chat with MODEL, a Hub id or a folder; or with a trial, if MODEL is a run folder.

    For a run folder --trial-index chooses the row of its front (0 by default), and /compare shows
    the original's replies beside the edited model's.
    """
    from heretic import pipeline
    from heretic.cli.chat import chat
    from heretic.cli.display import make_reporter
    from heretic.cli.text import make_console
    from heretic.cli.workflow import converse, prepared, reopened_run, trial_of
    from heretic.runs import RunFolder

    console = make_console()
    if RunFolder(Path(model)).exists:
        with reopened_run(Path(model), options.overrides, console) as (settings, place):
            trial = trial_of(place.folder, settings.trial_index or 0)
            session = prepared(settings, place, console)
            place.display.close()
            converse(session, trial, console)
        return 0
    settings = options.load(model=model)
    with make_reporter(console) as display:
        loaded = pipeline.load_model(settings, display)
    chat(loaded.stream_reply, console=console, system=settings.system_prompt)
    return 0
