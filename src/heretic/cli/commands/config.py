"""`heretic config`: print every setting with its default and its meaning, as TOML."""

from __future__ import annotations

import click


@click.command("config", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Print every setting with its default and meaning, as a configuration file.

    `heretic config > config.toml` writes one that you can edit.
    """
    from heretic.config.reference import default_toml

    click.echo(default_toml(), nl=False)
