"""Benchmarks on the screen: shown as one table, kept when they are stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from heretic.cli.display.tables import benchmark_table
from heretic.harness.run import Outcome, Wanted, run_benchmarks
from heretic.harness.tasks import BenchmarkError
from heretic.records.trial import Trial

if TYPE_CHECKING:
    from torch import Tensor

    from heretic.cli.display.reporter import Display
    from heretic.config.settings import Settings
    from heretic.model.core import Model
    from heretic.pipeline.run import Session


def show_benchmarks(
    session: Session, trial: Trial, tasks: Sequence[str], original: bool, display: Display
) -> RenderableType:
    """Run benchmarks on a session's trial and print their table; returns a line that says where."""
    session.evaluator.release()  # long prompts need the memory of the search's caches
    wanted = wanted_of(session.settings, tasks, original)
    folder = session.folder.path
    return benchmarked(session.model, session.directions, trial, wanted, folder, display)


def wanted_of(settings: Settings, tasks: Sequence[str], original: bool) -> Wanted:
    """The tasks, with the limit and the folder of tasks that the settings name."""
    return Wanted(tuple(tasks), original, settings.benchmark_limit, settings.benchmark_path)


def benchmarked(
    model: Model,
    directions: Tensor,
    trial: Trial,
    wanted: Wanted,
    folder: Path,
    display: Display,
) -> RenderableType:
    """Run benchmarks on a trial and print their table; returns a line that says where they are.

    Args:
        folder: The run folder, locked by the caller.

    Raises:
        BenchmarkError: Tasks failed; the table of the others has been printed.
        KeyboardInterrupt: The user stopped it; the table of finished tasks has been printed.
    """
    outcome = Outcome()
    try:
        run_benchmarks(model, trial, directions, folder, wanted, display, outcome)
    finally:
        display.close()
        if outcome.rows:
            display.console.print()
            display.console.print(_table(outcome, trial, wanted, folder))
    if outcome.failures:
        raise BenchmarkError(
            "; ".join(f"{task} failed: {reason}" for task, reason in outcome.failures.items()),
            remedy="Finished tasks are kept: the same command runs the rest.",
        )
    return f"Kept in {folder / 'benchmarks'}"


def _table(outcome: Outcome, trial: Trial, wanted: Wanted, folder: Path) -> Table:
    heading = f"Benchmarks, kept in {folder / 'benchmarks'}"
    if wanted.limit is not None:
        heading += f"; at most {wanted.limit} documents per task: not comparable with other results"
    return benchmark_table(outcome.rows, edited=f"trial {trial.number}", heading=heading)
