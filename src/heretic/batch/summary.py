"""What the jobs of a batch have come to, as plain data; and one page about all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from heretic.batch.file import REPORT
from heretic.batch.job import Condition, Job, condition, run_of
from heretic.errors import RunError
from heretic.records.selection import best_of, first_objective, named_rows
from heretic.records.trial import Score, Trial
from heretic.report.page.run import Event, RunData, read_run
from heretic.runs.events import work_times
from heretic.system.files import write_atomic
from heretic.system.optional import require

_OF_SEARCH = {"SearchStarted", "TrialStarted", "TrialFinished", "SearchFinished"}


@dataclass(frozen=True, slots=True)
class JobSummary:
    """A job and its figures.

    Attributes:
        condition: What it has come to.
        run: Its run; None if it has none, or an unreadable one.
        seconds: For which commands had worked on the run when its search was last at work.
        best: The first objective of the trial on the front that is best in it.
        chosen: The trial that was saved last, else the knee; None without a front.
        saved: Whether the chosen trial was saved.
    """

    job: Job
    condition: Condition
    run: RunData | None = None
    seconds: float = 0.0
    best: Score | None = None
    chosen: Trial | None = None
    saved: bool = False

    @property
    def completed(self) -> int:
        """How many trials are complete."""
        trials = () if self.run is None else self.run.trials
        return sum(trial.state == "complete" for trial in trials)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        run, chosen = self.run, self.chosen
        return {
            "name": self.job.name,
            "model": self.job.settings.model,
            "state": self.condition.state,
            "note": self.condition.note or None,
            "folder": str(self.job.folder),
            "run": None if run is None else str(run.path),
            "completed": self.completed,
            "failed": 0 if run is None else len(run.trials) - self.completed,
            "n_trials": self.job.settings.n_trials,
            "front": 0 if run is None else len(run.front),
            "seconds": round(self.seconds, 3),
            "original": [] if run is None else [score.to_dict() for score in run.baseline],
            "best": None if self.best is None else self.best.to_dict(),
            "chosen": None
            if run is None or chosen is None
            else {
                "number": chosen.number,
                "names": list(run.proposed.get(chosen.number, ())),
                "saved": self.saved,
                "scores": [score.to_dict() for score in chosen.scores],
            },
        }


def summaries(jobs: Sequence[Job]) -> list[JobSummary]:
    """What the jobs have come to, in their order.

    Raises:
        RunError: As `condition`.
    """
    return [_summary(job) for job in jobs]


def _summary(job: Job) -> JobSummary:
    found, path = condition(job), run_of(job)
    try:
        run = None if path is None else read_run(path)
    except RunError as error:
        return JobSummary(job, replace(found, note=found.note or str(error)))
    if run is None or not run.front:
        return JobSummary(job, found, run, 0.0 if run is None else _seconds(run.events))
    row = named_rows(run.front)[best_of(run.front[0].scores)]
    chosen = None if run.focus is None else run.trial(run.focus)
    return JobSummary(
        job,
        found,
        run,
        _seconds(run.events),
        first_objective(run.front[row].scores),
        chosen,
        saved=run.chosen is not None,
    )


def _seconds(events: Sequence[Event]) -> float:
    """Work on a run up to the last sign of its search: a chat with its trials does not count."""
    times = zip(events, work_times(events), strict=True)
    return max((at for event, at in times if event["event"] in _OF_SEARCH), default=0.0)


def write_report(found: Sequence[JobSummary], folder: Path) -> Path | None:
    """Write a page about the runs of finished jobs, named after the jobs; None if there are none.

    Raises:
        HereticError: The extra `report` is not installed, or the page cannot be written.
    """
    runs = [
        replace(one.run, renamed=one.job.name)
        for one in found
        if one.run is not None and one.condition.state == "finished"
    ]
    if not runs:
        return None
    for module in ("altair", "vl_convert"):
        require(module, extra="report", purpose="The report")
    from heretic.report.page import html

    path = folder / REPORT
    write_atomic(path, html.page_of_runs(runs) if len(runs) > 1 else html.page_of_run(runs[0]))
    return path
