"""Opening a run for a command: what `heretic.pipeline.opening` does, shown, and with questions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from heretic.cli.display.reporter import Display, LoggedDisplay, make_reporter
from heretic.cli.display.tables import bound_text
from heretic.cli.menu.checkpoint import choose_checkpoint
from heretic.cli.menu.dialogue import Dialogue
from heretic.cli.menu.questions import Back, Unanswered, terminal_prompter
from heretic.records.choices import RowName
from heretic.records.selection import row_within, trial_in_row
from heretic.records.trial import Trial
from heretic.records.trial import front as front_of
from heretic.system.display import safe

if TYPE_CHECKING:
    from heretic.cli.options import SettingsOptions
    from heretic.config.settings import Settings
    from heretic.pipeline.opening import OpenRun
    from heretic.pipeline.run import Session
    from heretic.runs.folder import RunFolder


@dataclass(frozen=True, slots=True)
class ShownRun:
    """An open run, and the screen that shows what is done with it."""

    run: OpenRun
    display: LoggedDisplay

    @property
    def settings(self) -> Settings:
        """Those of the run."""
        return self.run.settings


@contextmanager
def held_run(
    settings: Settings, console: Console, started: float, *, may_begin: bool = True
) -> Iterator[ShownRun]:
    """As `heretic.pipeline.opening.held_run`, with progress on a console.

    Raises:
        HereticError: As there, or a package that research output needs is missing.
    """
    from heretic.cli.display.research import check_research
    from heretic.pipeline import opening

    check_research(settings)
    with (
        make_reporter(console) as display,
        opening.held_run(settings, display, started, may_begin=may_begin) as run,
    ):
        yield ShownRun(run, LoggedDisplay(display, run.reporter))


@contextmanager
def reopened_run(
    path: Path, options: SettingsOptions, console: Console, started: float, *, trust_plugins: bool
) -> Iterator[ShownRun]:
    """As `heretic.pipeline.opening.reopened_run`, with progress on a console.

    Raises:
        HereticError: As there, or a package that research output needs is missing.
    """
    from heretic.cli.display.research import check_research
    from heretic.pipeline import opening

    layers = options.layers()
    with (
        make_reporter(console) as display,
        opening.reopened_run(
            path, layers, display, started, trust_plugins=trust_plugins, check=check_research
        ) as run,
    ):
        yield ShownRun(run, LoggedDisplay(display, run.reporter))


@contextmanager
def locked(folder: RunFolder, display: Display) -> Iterator[LoggedDisplay]:
    """Lock a run folder, and write what is shown to its log and to its events as well.

    Raises:
        RunError: Another process has locked it.
    """
    from heretic.pipeline import opening

    with opening.locked(folder, display) as reporter:
        yield LoggedDisplay(display, reporter)


def prepared(opened: ShownRun) -> Session:
    """A session of an open run, after what the research settings ask to see."""
    from heretic.cli.display.research import show_residuals
    from heretic.pipeline import opening

    session = opening.prepared(opened.run, partial(_search_all_the_same, opened.display))
    show_residuals(session, opened.display)
    return session


def _search_all_the_same(display: Display, found: str) -> bool:
    """Ask whether to search for a behaviour that hardly shows; False where nobody can be asked."""
    prompter = terminal_prompter()
    if prompter is None:
        return False
    display.close()
    display.console.print(Text(safe(found), style="yellow"))
    try:
        return prompter.confirm("Search all the same?")
    except (Back, Unanswered):
        return False


def settle_existing_run(opened: ShownRun, *, asks: bool = True) -> bool:
    """Continue or discard the trials that the run has already; False if the user wants to quit.

    Args:
        asks: Whether the user may be asked; if not, the run is continued.

    Raises:
        RunError: The run is damaged, or its search cannot go on (see `pipeline.check_detector`),
            and nobody said that it may be discarded.
    """
    from heretic.pipeline import opening
    from heretic.pipeline.detector import other_detector

    found = opening.existing_run(opened.run)
    if found is None:
        return True
    manifest, trials = found
    settings = opened.settings
    if not asks:
        settings = settings.replaced(checkpoint_action="continue")
    action = choose_checkpoint(
        Dialogue.of_command(settings, opened.display, manifest.baseline),
        completed=sum(trial.state == "complete" for trial in trials),
        n_trials=opened.settings.n_trials,
        front=front_of(trials),
        ended=other_detector(manifest, opened.run.scorers),
    )
    return opening.settle(opened.run, manifest, action)


def trial_of(
    folder: RunFolder, settings: Settings, console: Console, *, default: int | RowName = 0
) -> Trial:
    """The trial of a run that `trial_index` or else `max_refusals` chooses.

    What `max_refusals` chooses is printed.

    Args:
        default: The row where neither is set.

    Raises:
        SettingsError: There is no such row, or `max_refusals` bounds nothing.
    """
    front, most = front_of(folder.read_trials()), settings.max_refusals
    if settings.trial_index is not None or most is None or not front:
        index = settings.trial_index
        return trial_in_row(front, default if index is None else index)
    console.print(Text(safe(bound_text(front, most)[0])), soft_wrap=True)
    return front[row_within(front, most).row]
