"""Progress as plain lines without ANSI codes, for files, pipes and logs."""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text

from heretic.cli.display.progress import ReporterBase, Stage, finished_text, trial_line
from heretic.cli.display.tables import scores_text
from heretic.cli.display.text import title
from heretic.events import (
    EvaluationProgress,
    Event,
    Notice,
    SearchFinished,
    SearchStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    TrialFinished,
    TrialStarted,
)
from heretic.system.display import count_of, safe

SECONDS_BETWEEN_LINES = 15.0
"""Lines about progress within a stage or trial are at least this far apart."""


class PlainReporter(ReporterBase):
    """Plain lines without ANSI codes, for files, pipes and logs."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._told = 0.0

    def _show(self, event: Event) -> None:
        match event:
            case Notice():
                self._line(event.text, event.level)
            case StageStarted():
                self._stage = Stage(event.title, total=event.total)
                self._told = time.monotonic()
                self._line(f"{event.title} ...")
            case StageProgress():
                self._seldom(f"{event.done}/{event.total} {event.unit}")
            case StageFinished():
                stage, self._stage = self._stage, None
                if stage is not None:
                    self._line(stage.summary(event.summary))
            case SearchStarted():
                self._line(f"Original model: {scores_text(event.baseline)}")
                done = count_of(event.completed, event.n_trials)
                self._line(f"Search: {done} trials done")
            case TrialStarted():
                self._told = time.monotonic()
            case EvaluationProgress():
                self._seldom(f"{title(event.what)} {event.done}/{event.total}")
            case TrialFinished():
                self._line(trial_line(event))
            case SearchFinished():
                self._line(finished_text(event)[0])

    def _line(self, text: str, level: str = "info") -> None:
        marked = f"Warning: {safe(text)}" if level == "warning" else safe(text)
        self.console.print(Text(marked), soft_wrap=True)
        self.console.file.flush()  # a pipe's reader wants to see it now

    def _seldom(self, text: str) -> None:
        now = time.monotonic()
        if now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            self._line(f"  {text}")
