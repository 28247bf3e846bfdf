"""`heretic reproduce FILE`: rebuild a saved model from its `reproduce.json`."""

from __future__ import annotations

from pathlib import Path

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options
from heretic.cli.signals import outlives_terminal
from heretic.errors import ExportError


@click.command("reproduce", cls=SettingsCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--trust-plugins",
    is_flag=True,
    help="Load the scorers from outside Heretic that the file names: their code is run.",
)
@settings_options
@outlives_terminal()
def command(file: Path, trust_plugins: bool, options: SettingsOptions) -> int:
    """Rebuild a saved model. FILE is its reproduce.json, or the folder that holds it.

    The model is saved in --save-directory, and its weight files are compared with the recorded
    hashes. The exit status is 2 if they differ.
    """
    from heretic.export.files import REPRODUCTION

    options.refuse_config("reproduce", "all settings are those in the file")
    place = file / REPRODUCTION if file.is_dir() else file
    if not place.exists():  # said before the imports that take seconds
        raise ExportError(
            f"{place} does not exist.",
            remedy="Name the folder of a saved model, or its reproduce.json.",
        )
    from heretic import pipeline
    from heretic.cli.display.next_steps import next_steps
    from heretic.cli.display.reporter import make_reporter
    from heretic.cli.display.text import make_console
    from heretic.export import reproduce

    overrides = dict(options.overrides)
    default = f"{(file if file.is_dir() else file.absolute().parent).name}-reproduced"
    destination = Path(overrides.pop("save_directory", default))
    with make_reporter(make_console()) as display:
        outcome = reproduce.reproduce(
            file,
            destination,
            prepare=pipeline.prepare_directions,
            reporter=display,
            trust_plugins=trust_plugins,
            overrides=overrides,
        )
        pipeline.audit_reproduced(outcome.folder, overrides, display)
    display.console.print(next_steps([("Talk to the model:", ["chat", str(destination)])]))
    return 0 if outcome.identical else 2
