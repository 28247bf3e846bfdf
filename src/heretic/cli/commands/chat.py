"""`heretic chat MODEL` or `heretic chat RUN --trial-index N`: talk to a model."""

from __future__ import annotations

from pathlib import Path

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options


@click.command("chat", cls=SettingsCommand)
@click.argument("model")
@settings_options
def command(model: str, options: SettingsOptions) -> int:
    """Chat with MODEL, a Hub id, a folder or an adapter's; or with a trial of a run folder.

    For a run folder --trial-index chooses the row of its front (0 by default), and /compare shows
    the original's replies beside the edited model's.
    """
    from heretic import pipeline
    from heretic.cli.display.reporter import make_reporter
    from heretic.cli.display.text import make_console
    from heretic.cli.menu.chat import chat
    from heretic.cli.opening import known_run, run_settings, trial_of
    from heretic.cli.workflow import converse
    from heretic.export.adapter import adapter_base, attach_adapter
    from heretic.runs.folder import RunFolder

    console = make_console()
    path = Path(model)
    if RunFolder(path).exists:
        folder, manifest = known_run(path)
        settings = run_settings(manifest, options)
        trial = trial_of(folder, settings.trial_index or 0)
        with make_reporter(console) as display:
            searched, directions = pipeline.load_run(settings, folder, manifest, display)
        converse(searched, directions, trial, settings, console)
        return 0
    base = adapter_base(path)
    if base is None:
        settings = options.load(model=model)
    else:
        settings = options.load(model=base[0]).replaced(model_commit=base[1])
    with make_reporter(console) as display:
        loaded = pipeline.load_model(settings, display)
    if base is not None:
        attach_adapter(loaded, path)
    chat(loaded.stream_reply, console=console, system=settings.system_prompt)
    return 0
