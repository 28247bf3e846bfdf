"""`heretic report RUN`: one page of all that a run knows."""

from __future__ import annotations

from pathlib import Path

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options

PAGE = "report.html"


@click.command("report", cls=SettingsCommand)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help=f"Where the page is written. Default: {PAGE} in the run folder, or here for several runs.",
)
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write each figure as PNG and SVG into this folder, too.",
)
@click.option(
    "--share",
    is_flag=True,
    help="Leave out prompts, replies, paths, and names of users and hosts.",
)
@settings_options
def command(
    runs: tuple[str, ...],
    output: Path | None,
    pictures: Path | None,
    share: bool,
    options: SettingsOptions,
) -> int:
    """Write a page about RUN: front, layers, replies, times, settings. Several are compared.

    RUN is a run folder, or its number in `heretic runs`. It may be running, interrupted or
    finished. The page is one file that asks nothing of the network.
    """
    from heretic.errors import SettingsError
    from heretic.report.page.run import read_run, told_apart
    from heretic.system.display import safe
    from heretic.system.files import check_writable, write_atomic
    from heretic.system.optional import require

    for module in ("altair", "vl_convert"):
        require(module, extra="report", purpose="The report")
    from heretic.report.page import html
    from heretic.report.page.charts import figures_of, figures_of_runs
    from heretic.report.page.pictures import write_pictures

    if share and len(runs) > 1:
        raise SettingsError(
            "--share is for the page of one run.", remedy="Give one run, or leave out --share."
        )
    if output is not None:
        check_writable(output.parent)
    found = told_apart([read_run(options.run_path(run)) for run in dict.fromkeys(runs)])
    several = len(found) > 1
    text = html.page_of_runs(found) if several else html.page_of_run(found[0], share=share)
    path = output or (Path(PAGE) if several else found[0].path / PAGE)
    write_atomic(path, text, parents=True)
    click.echo(safe(f"The page is {path}."))
    if pictures is not None:
        figures = figures_of_runs(found) if several else figures_of(found[0])
        written = write_pictures(figures, pictures)
        click.echo(safe(f"{len(written)} pictures are in {pictures}."))
    return 0
