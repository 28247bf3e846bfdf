"""`heretic runs`: list the run folders and their state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heretic.system.display import json_text, safe

if TYPE_CHECKING:
    from rich.table import Table

    from heretic.runs.listing import RunSummary


@click.command("runs", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--study-checkpoint-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that holds the run folders. Default: the setting of this name.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read settings from this TOML file instead of config.toml.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, for programs.")
def command(study_checkpoint_dir: Path | None, config: Path | None, as_json: bool) -> None:
    """List the run folders, the most recently used first.

    A run is running, finished (it has all its trials), unfinished (the command that started it
    continues it), or unreadable.
    """
    from heretic.config.settings import load_settings
    from heretic.runs.listing import list_runs

    given = {} if study_checkpoint_dir is None else {"study_checkpoint_dir": study_checkpoint_dir}
    folder = load_settings(given, config, require_model=False).study_checkpoint_dir
    runs = list_runs(folder)
    if as_json:
        click.echo(json_text([run.to_dict() for run in runs], indent=2))
    elif runs:
        _print(runs)
    else:
        click.echo(safe(f"There are no runs in {folder}."))


def _print(runs: Sequence[RunSummary]) -> None:
    from heretic.cli.display.text import make_console

    console = make_console()
    console.print(_table(runs))
    for run in runs:
        if run.note is not None:
            console.print(safe(f"{run.path}: {run.note}"), markup=False, soft_wrap=True)


def _table(runs: Sequence[RunSummary]) -> Table:
    """One row for each run."""
    from rich import box
    from rich.table import Table

    from heretic.cli.display.text import text_cells

    table = Table(box=box.SIMPLE)
    for name in ("model", "state", "trials", "failed", "front", "last used (UTC)"):
        justify = "right" if name in ("trials", "failed", "front") else "left"
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("folder", overflow="fold")
    for run in runs:
        target = f" of {run.n_trials}" if run.n_trials is not None else ""
        used = run.updated.replace("T", " ")[:16]
        counts = (f"{run.completed}{target}", run.failed, run.front)
        table.add_row(*text_cells(run.model, run.state, *counts, used, run.path))
    return table
