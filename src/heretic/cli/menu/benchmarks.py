"""Benchmarks on the screen: checked before the work, shown as one table, kept when stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

from heretic.cli.display.tables import benchmark_table
from heretic.events import Reporter
from heretic.harness.run import Outcome, Wanted, run_benchmarks
from heretic.harness.tasks import BenchmarkError, check_tasks
from heretic.records.trial import Trial

if TYPE_CHECKING:
    from torch import Tensor

    from heretic.cli.display.reporter import Display
    from heretic.config.settings import Settings
    from heretic.model.core import Model
    from heretic.pipeline.run import Session


def check_benchmarks(settings: Settings) -> None:
    """Say before the search what would stop benchmarks after it.

    Raises:
        SettingsError: A task does not exist, or `benchmark_path` is no folder.
        HereticError: lm-eval is not installed.
    """
    if settings.model_action == "benchmark":
        check_tasks(settings.benchmarks or (), settings.benchmark_path)


def show_benchmarks(
    session: Session,
    trial: Trial,
    tasks: Sequence[str],
    original: bool,
    console: Console,
    display: Display,
) -> RenderableType:
    """`benchmarked` for a session's trial."""
    session.evaluator.release()  # the search's caches need not lie beside those of long prompts
    return benchmarked(
        session.model,
        session.directions,
        trial,
        wanted_of(session.settings, tasks, original),
        session.folder.path,
        session.reporter,
        console,
        display,
    )


def wanted_of(settings: Settings, tasks: Sequence[str], original: bool) -> Wanted:
    """The tasks with what settings say about them."""
    return Wanted(tuple(tasks), original, settings.benchmark_limit, settings.benchmark_path)


def benchmarked(
    model: Model,
    directions: Tensor,
    trial: Trial,
    wanted: Wanted,
    folder: Path,
    reporter: Reporter,
    console: Console,
    display: Display,
) -> RenderableType:
    """Run benchmarks on a trial; the table.

    Raises:
        BenchmarkError: Tasks failed; the table of the others has been shown.
        KeyboardInterrupt: It was stopped; the table of what was done has been shown.
    """
    outcome = Outcome()
    table = None
    try:
        run_benchmarks(model, trial, directions, folder, wanted, reporter, outcome)
    finally:
        display.close()
        if outcome.rows:
            heading = f"Benchmarks, kept in {folder / 'benchmarks'}"
            if wanted.limit is not None:
                heading += f"; {wanted.limit} documents a task at most: compare with nothing else"
            table = benchmark_table(outcome.rows, edited=f"trial {trial.number}", heading=heading)
            console.print()
            console.print(table)
    if outcome.failures:
        raise BenchmarkError(
            "; ".join(f"{task} failed: {reason}" for task, reason in outcome.failures.items()),
            remedy="What is done is kept: the same again runs the rest.",
        )
    return f"Kept in {folder / 'benchmarks'}"
