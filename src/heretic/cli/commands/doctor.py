"""`heretic doctor`: whether this machine can do the work, and what would fit on it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from heretic.cli.options import SettingsOptions, config_option


@click.command("doctor", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--hub", is_flag=True, help="Ask the Hub whether it answers, and accepts the stored token."
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(hub: bool, config: Path | None, as_json: bool) -> int:
    """Look at this machine: what will fail, what is slow, and what would fit.

    A storage and a Ray cluster that your settings name are asked whether they answer.

    The exit status is 1 if something will fail, else 0.
    """
    from heretic.doctor.examination import examine

    found = examine(config, SettingsOptions().tell, ask_hub=hub)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        from heretic.cli.display.doctor import show

        show(found)
    return int(found.fails)
