"""Run benchmarks of a trial task by task; results are stored after each task."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.errors import HereticError, is_of_interruption
from heretic.events import Notice, Reporter, StageFinished, StageStarted, whole_stages
from heretic.harness.results import Measurement, PairedMetric, compare
from heretic.harness.store import ResultFile, key_of_edited
from heretic.harness.tasks import check_tasks, folder_digest, remedy_for, task_manager
from heretic.records.trial import Trial
from heretic.runs.folder import digest

if TYPE_CHECKING:
    from torch import Tensor

    from heretic.model.core import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to run.

    Attributes:
        tasks: Names that the harness knows.
        original: Whether to run the original model too. Stored results of it are always shown.
        limit: Number of first documents of each task; None for all.
        path: Folder with the user's own tasks.
    """

    tasks: tuple[str, ...]
    original: bool = True
    limit: int | None = None
    path: Path | None = None


@dataclass(slots=True)
class Outcome:
    """Results so far, filled while tasks run, so that Ctrl+C loses only the current task.

    Attributes:
        rows: Figures, in the order of the tasks.
        failures: Task to the reason why it failed, with a remedy.
    """

    rows: list[PairedMetric] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def run_benchmarks(
    model: Model,
    trial: Trial,
    directions: Tensor,
    folder: Path,
    wanted: Wanted,
    reporter: Reporter,
    outcome: Outcome,
) -> None:
    """Run the tasks without stored results; after a task fails, the others still run.

    Args:
        model: The loaded model.
        trial: The trial whose plan is applied.
        directions: The run's directions, [layers + 1, hidden] or [layers + 1, k, hidden].
        folder: The run folder; the caller holds its lock.
        wanted: What to run.
        reporter: Receives progress.
        outcome: Filled task by task.

    Raises:
        SettingsError: A task does not exist; then nothing has been run.
        RunError: Results cannot be read or written.
        KeyboardInterrupt: The user interrupts; finished tasks are stored.
    """
    check_tasks(wanted.tasks, wanted.path)
    original, edited = ResultFile(folder), ResultFile(folder, trial)
    for task in dict.fromkeys(wanted.tasks):
        key = result_key(model, task, wanted)
        trial_key = key_of_edited(key, trial.plan)
        try:
            if wanted.original:
                _known_or_run(
                    original, key, task, "original", model, model.unedited, wanted, reporter
                )
            _known_or_run(
                edited,
                trial_key,
                task,
                f"trial {trial.number}",
                model,
                lambda: model.edited(trial.plan, directions),
                wanted,
                reporter,
            )
        except _TaskFailed as failure:
            outcome.failures[task] = str(failure)
        outcome.rows += compare(original.measurements.get(key), edited.measurements.get(trial_key))
        edited.write(outcome.rows)


class _TaskFailed(Exception):  # noqa: N818 - it ends a task, not the program
    """A task failed; the message has the reason and a remedy."""


def _known_or_run(
    file: ResultFile,
    key: str,
    task: str,
    who: str,
    model: Model,
    acting: Callable[[], AbstractContextManager[None]],
    wanted: Wanted,
    reporter: Reporter,
) -> None:
    """Run a task unless the file has its figures already.

    Raises:
        _TaskFailed: The task failed.
        RunError: The file cannot be written.
    """
    if key in file.measurements:
        return
    with whole_stages(reporter) as told:
        told.emit(StageStarted(f"Benchmark {task}, {who}"))
        from heretic.harness.measure import measure

        try:
            with acting():
                found = measure(
                    model, task, key=key, limit=wanted.limit, path=wanted.path, reporter=told
                )
        except Exception as error:  # of the task, its data or its code; other tasks run on
            if is_of_interruption(error):
                raise
            logger.exception("The benchmark %s failed", task)
            reason = _reason(error)
            told.emit(Notice(f"Benchmark {task}, {who}: {reason}", level="warning"))
            raise _TaskFailed(reason) from error
        file.put(found)
        file.write()
        told.emit(StageFinished(_summary(found)))


def _reason(error: Exception) -> str:
    if isinstance(error, HereticError):
        return str(error)
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{said.rstrip('.')}. {remedy_for(error)}"


def _summary(found: Measurement) -> str:
    figures = [f"{row.metric} {row.value:.4g}" for row in found.metrics if row.value is not None]
    return ", ".join(figures[:4])


def result_key(model: Model, task: str, wanted: Wanted) -> str:
    """Digest of everything, except the model, that the original's figures of a task depend on."""
    from heretic.harness.measure import reasoning_block

    content: dict[str, Any] = {
        "task": task,
        "limit": wanted.limit,
        "system_prompt": model.options.system_prompt,
        "reasoning_block": reasoning_block(model),
        "dtype": str(model.dtype),
        "quantization": model.options.quantization,
        "harness": importlib.metadata.version("lm-eval"),
    }
    if _is_own(task, wanted.path):
        content["files"] = folder_digest(wanted.path)
    return digest(content)


def _is_own(task: str, path: Path | None) -> bool:
    """Whether the task is the user's own, not one of the harness."""
    return path is not None and task not in task_manager().all_tasks
