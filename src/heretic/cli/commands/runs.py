"""`heretic runs`: list the run folders and their state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heretic.cli.options import SettingsOptions, config_option
from heretic.system.display import clip_middle, json_text, safe
from heretic.system.hub import display_name

if TYPE_CHECKING:
    from heretic.runs.listing import RunSummary


NARROWEST = 30
"""Characters of a model's name that are worth a column."""

INDENT = 5


@click.command("runs", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--study-checkpoint-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that holds the run folders. Default: the setting of this name.",
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, for programs.")
def command(study_checkpoint_dir: Path | None, config: Path | None, as_json: bool) -> None:
    """List the run folders and those of batches, the most recently used first.

    The number of a run stands for its folder in other commands: `heretic export 3`.

    A run is running, finished (it has all its trials), unfinished (the command that started it
    continues it), or unreadable.
    """
    from heretic.config.settings import load_settings
    from heretic.runs.listing import list_runs

    given = {} if study_checkpoint_dir is None else {"study_checkpoint_dir": study_checkpoint_dir}
    settings = load_settings(given, config, require_model=False, tell=SettingsOptions().tell)
    folder = settings.study_checkpoint_dir
    runs = list_runs(folder)
    if as_json:
        click.echo(json_text([run.to_dict() for run in runs], indent=2))
    elif runs:
        _print(runs)
    else:
        click.echo(safe(f"There are no runs in {folder}."))


def _print(runs: Sequence[RunSummary]) -> None:
    """Two lines for each run: its figures, and its folder, which is never cut."""
    from rich.text import Text

    from heretic.cli.display.text import make_console
    from heretic.runs.listing import numbers
    from heretic.system.display import count_of

    console = make_console()
    known = {run.path: str(number) for number, run in numbers(runs).items()}
    heading = _row("#", "state", "trials", "failed", "front", "last used (UTC)")
    left = console.width - len(heading) - 2
    beside = left >= NARROWEST  # else the model has a line of its own
    last = "  model" if beside else ""
    console.print(Text(f"{heading}{last}", style="bold"), soft_wrap=True)
    for run in runs:
        used = run.updated.replace("T", " ")[:16]
        counts = (count_of(run.completed, run.n_trials), str(run.failed), str(run.front))
        figures = _row(known.get(run.path, "-"), run.state, *counts, used)
        model = display_name(run.model)
        shown = f"  {clip_middle(model, left)}" if beside else ""
        console.print(Text(f"{figures}{shown}"), soft_wrap=True)
        if not beside:
            name = clip_middle(model, max(NARROWEST, console.width - INDENT))
            console.print(Text(f"{' ' * INDENT}{name}"), soft_wrap=True)
        console.print(Text(safe(f"{' ' * INDENT}{run.path}")), soft_wrap=True)
        if run.note is not None:
            console.print(Text(safe(f"{' ' * INDENT}{run.note}"), style="yellow"), soft_wrap=True)


def _row(number: str, state: str, trials: str, failed: str, front: str, used: str) -> str:
    return f"{number:>3}  {state:<10}  {trials:>10}  {failed:>6}  {front:>5}  {used:<16}"
