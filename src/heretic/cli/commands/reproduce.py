"""`heretic reproduce FILE`: make a saved model again from its `reproduce.json`."""

from __future__ import annotations

from pathlib import Path

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options


@click.command("reproduce", cls=SettingsCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--trust-plugins", is_flag=True, help="Load scorers that the file names.")
@settings_options
def command(file: Path, trust_plugins: bool, options: SettingsOptions) -> int:
    """Make the model of FILE (a reproduce.json, or the folder that holds it) again.

    Saves to --save-directory and compares the weight files with the recorded hashes.
    """
    from heretic import export, pipeline
    from heretic.cli.display.reporter import make_reporter
    from heretic.cli.display.text import make_console

    options.refuse_config("reproduce", "all settings are those in the file")
    overrides = dict(options.overrides)
    default = f"{(file if file.is_dir() else file.absolute().parent).name}-reproduced"
    destination = Path(overrides.pop("save_directory", default))
    with make_reporter(make_console()) as display:
        outcome = export.reproduce(
            file,
            destination,
            prepare=pipeline.prepare_directions,
            reporter=display,
            trust_plugins=trust_plugins,
            overrides=overrides,
        )
    return 0 if outcome.identical else 2
