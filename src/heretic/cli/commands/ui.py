"""`heretic ui`: a local page that does the whole job."""

from __future__ import annotations

from pathlib import Path

import click

from heretic.system.display import safe


@click.command("ui")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to serve at. Others than loopback can be reached from elsewhere.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7860,
    show_default=True,
    help="Port to serve at; 0 takes any that is free.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Another name by which the page may be asked, such as that of a proxy. May be repeated.",
)
@click.option(
    "--folder",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Another folder whose models and prompts may be chosen. May be repeated.",
)
@click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of the run folders. Default: the setting study_checkpoint_dir.",
)
@click.option("--open/--no-open", "opens", default=True, show_default=True, help="Open a browser.")
def command(
    host: str,
    port: int,
    hosts: tuple[str, ...],
    folders: tuple[Path, ...],
    runs: Path | None,
    opens: bool,
) -> int:
    """Open a page to search, watch, compare, chat, score and save, in the browser.

    Only this machine reaches it, and only with the token in the printed address. The work is done
    in a process of its own: closing the page stops nothing.
    """
    from heretic.config.settings import load_settings
    from heretic.ui.server import Options, check_loopback, serve

    given = {} if runs is None else {"study_checkpoint_dir": runs}
    settings = load_settings(given, None, require_model=False)
    warning = check_loopback(host)
    if warning:
        click.echo(safe(f"Warning: {warning}"), err=True)
    options = Options(
        settings.study_checkpoint_dir.absolute(), host, port, hosts, folders, opens=opens
    )
    serve(options, click.echo)
    return 0
