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
    settings = options.load_models(model=model)
    if settings.evaluate_model:
        from heretic.cli.commands.evaluate import evaluate

        return evaluate(settings, as_json=False)
    from heretic.cli.workflow import run_of_settings

    return run_of_settings(settings, started)
