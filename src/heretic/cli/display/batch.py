"""What `heretic batch` prints: what happens to its jobs, and a table of what they have come to."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from heretic.batch.job import LOG, Job, condition
from heretic.batch.progress import progress
from heretic.batch.summary import JobSummary
from heretic.cli.display.text import title
from heretic.records.trial import Score, ends_text
from heretic.system.display import format_duration, safe_line

STYLES = {"finished": "green", "failed": "bold red", "changed": "bold red", "running": "cyan"}
_INTERRUPTED = {130, 143, 129}
_SECONDS_BETWEEN_LOOKS = 1.0
_GAP, _INDENT = "  ", 2


class BatchDisplay:
    """Lines on what happens to jobs and, on a terminal, how far those at work have come.

    Args:
        total: How many jobs will be started.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self._since: dict[str, float] = {}
        self._numbers: dict[str, int] = {}
        self._live: Live | None = None
        self._looked = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show what is at work while the context lasts, if the console is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        try:
            with Live(console=self._console, transient=True, auto_refresh=False) as self._live:
                yield
        except BaseException:  # an interruption may have kept rich from it
            self._console.show_cursor(True)
            raise

    def started(self, job: Job) -> None:
        """Say so, and where its output is."""
        self._line(f"{self._counted(job)} {job.name}: started; {job.folder / LOG}")

    def found_running(self, job: Job) -> None:
        """Say that it is waited for."""
        self._line(
            f"{self._counted(job)} {job.name}: a process from before is at work on it; "
            "waiting for its end"
        )

    def _counted(self, job: Job) -> str:
        """Its place among all; a job that was waited for, and then started, has one."""
        self._since[job.name] = time.monotonic()
        number = self._numbers.setdefault(job.name, len(self._numbers) + 1)
        return f"[{number}/{self._total}]"

    def ended(self, job: Job, status: int) -> None:
        """Say how it ended, and after how long."""
        took = format_duration(time.monotonic() - self._since[job.name])
        found = condition(job)
        if found.state in ("finished", "failed"):
            note = f": {found.note}" if found.note else ""
            self._line(f"{job.name}: {found.state} after {took}{note}", STYLES[found.state])
        elif status in _INTERRUPTED:
            self._line(f"{job.name}: interrupted after {took}", "yellow")
        else:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            text = f"{job.name}: its process ended with {how} after {took}; see {job.folder / LOG}"
            self._line(text, "bold red")

    def at_work(self, jobs: Sequence[Job]) -> None:
        """Show how far they have come."""
        now = time.monotonic()
        if self._live is None or now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        lines = [
            f"  {job.name}: {progress(job.folder) or 'starting'}, "
            f"{format_duration(now - self._since[job.name])}"
            for job in jobs
        ]
        shown = Text(safe_line(lines[0]) if len(lines) == 1 else "\n".join(map(safe_line, lines)))
        shown.no_wrap, shown.overflow = True, "ellipsis"
        self._live.update(shown, refresh=True)

    def stopping(self, jobs: Sequence[Job]) -> None:
        """Say that they are told to end, and awaited."""
        if jobs:
            names = ", ".join(job.name for job in jobs)
            self._line(f"Ending {names}; what was found so far is kept ...", "yellow")

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text(safe_line(text), style=style), soft_wrap=True)
        self._console.file.flush()


def show_summary(console: Console, found: Sequence[JobSummary]) -> None:
    """Print the table of all jobs, and below it why some have not finished."""
    for line in summary_lines(found, console.width):
        console.print(line, soft_wrap=True)
    if any(one.chosen for one in found):
        legend = (
            f"best: best {_headings(found)[0]} of the front. Beside it: the trial saved last, else "
            "the knee; [ ]: 95% interval. time: until the search ended."
        )
        console.print(Text(legend, style="dim"))
    for one in found:
        if one.condition.note:
            text = Text(safe_line(f"{one.job.name}: {one.condition.note}"), style="yellow")
            console.print(text, soft_wrap=True)


def summary_lines(found: Sequence[JobSummary], width: int) -> list[Text]:
    """A table with one row for each job, in as many columns of characters as there are.

    Where names are too long for that, each stands on a line of its own, above its figures; on
    narrower screens intervals are left out.
    """
    first, second = _headings(found)
    heading = ("job", "state", "trials", "best", first, second, "time")
    rows = [heading, *map(_cells, found)]
    if (beside := _width(rows)) > width:
        beside = 0
        if _width([row[1:] for row in rows]) + _INDENT > width:
            rows = [(*row[:4], row[4].partition(" [")[0], *row[5:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(rows[0], widths, "bold", beside=bool(beside))]
    for row in rows[1:]:
        if not beside:
            lines.append(Text(row[0]))
        lines.append(_line(row, widths, STYLES.get(row[1], ""), beside=bool(beside)))
    return lines


def _width(rows: Sequence[Sequence[str]]) -> int:
    columns = zip(*rows, strict=True)
    return sum(max(map(len, column)) + len(_GAP) for column in columns) - len(_GAP)


def _line(row: Sequence[str], widths: Sequence[int], style: str, *, beside: bool) -> Text:
    """A row as text; the style is that of the state, or of the whole heading."""
    whole = style == "bold"
    text = Text(row[0].ljust(widths[0]) + _GAP if beside else " " * _INDENT)
    text.append(row[1].ljust(widths[1]), style="" if whole else style)
    for cell, size in zip(row[2:], widths[2:], strict=True):
        text.append(_GAP + cell.rjust(size))
    if whole:
        text.stylize(style)
    text.rstrip()
    return text


def _objectives(one: JobSummary) -> list[Score]:
    scores = () if one.chosen is None else one.chosen.scores
    return [score for score in scores if score.optimization != "none"]


def _headings(found: Sequence[JobSummary]) -> tuple[str, str]:
    """Names of the first two objectives, where all jobs have the same."""
    names: list[str] = []
    for number, other in enumerate(("first", "second")):
        known = {scores[number].name for one in found if len(scores := _objectives(one)) > number}
        name = title(known.pop()) if len(known) == 1 else other
        names.append(name.removesuffix(" divergence"))
    return names[0], names[1]


def _cells(one: JobSummary) -> tuple[str, ...]:
    """A row: what a count is made of, in brackets, is for the page."""
    scores = _objectives(one)
    chosen = second = ""
    if scores:
        chosen = scores[0].short
        if scores[0].interval is not None:
            chosen += f" [{ends_text(scores[0].interval)}]"
        second = scores[1].short if len(scores) > 1 else ""
    return (
        one.job.name,
        one.condition.state,
        f"{one.completed}/{one.job.settings.n_trials}",
        "" if one.best is None else one.best.short,
        chosen,
        second,
        "" if one.run is None else format_duration(one.seconds),
    )


def print_goes_on(console: Console, file: Path) -> None:
    """Print the command that goes on with a batch."""
    command = shlex.join(["heretic", "batch", str(file)])
    console.print(Text(safe_line(f"The same command goes on: {command}")), soft_wrap=True)
