"""The live panel of a terminal.

Events only change fields; `rich` draws from them a few times a second in its own thread, so `emit`
never waits for the terminal.
"""

from __future__ import annotations

import time

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from heretic.cli.display.progress import (
    ReporterBase,
    Search,
    Stage,
    ended_early,
    failure_text,
    finished_text,
)
from heretic.cli.display.tables import front_table, scores_text
from heretic.cli.display.text import memory_text, title
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
from heretic.records.trial import Trial
from heretic.system.display import count_of, format_duration, safe

REFRESHES_PER_SECOND = 4
BAR_WIDTH = 24
PANEL_WIDTH = 100
"""The panel is at most this wide: figures that are far apart are hard to compare."""
PANEL_LINES = 16
"""Lines of the screen without rows of the front: the rest of the panel, and what is around it."""

_SYMBOLS = {"info": (" ", ""), "warning": ("!", "yellow"), "success": ("✓", "green")}


class RichReporter(ReporterBase):
    """The live panel. Finished stages stay on the screen as one line each."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Live | None = None
        self._spinner = Spinner("dots")

    def close(self) -> None:
        """Take the panel down, which shows the cursor again."""
        live, self._live = self._live, None
        if live is not None:
            try:
                live.stop()
            except BaseException as error:  # above all an interruption of this, or of its start
                self.console.show_cursor(True)
                if not isinstance(error, IndexError):  # rich had not yet put its hook there
                    raise
        super().close()

    def _open(self) -> None:
        if self._live is None:
            self._live = Live(
                get_renderable=self._render,
                console=self.console,
                refresh_per_second=REFRESHES_PER_SECOND,
                transient=True,
            )
            self._live.start()

    def _settle(self) -> None:
        """Take the panel down unless a stage or the search still runs."""
        if self._stage is None and self._search is None:
            self.close()

    def _show(self, event: Event) -> None:
        match event:
            case Notice():
                self._print(event.text, event.level)
            case StageStarted():
                self._stage = Stage(event.title, total=event.total)
                self._open()
            case StageProgress():
                if self._stage is not None:
                    self._stage.done, self._stage.total = event.done, event.total
                    self._stage.unit = event.unit
            case StageFinished():
                stage, self._stage = self._stage, None
                self._settle()
                if stage is not None:
                    self._print(stage.summary(event.summary), "success")
            case _:
                self._show_search(event)

    def _show_search(self, event: Event) -> None:
        search = self._search
        if isinstance(event, SearchStarted):
            self._search = Search(event.completed, event.n_trials, event.baseline)
            self._open()
        elif isinstance(event, SearchFinished):
            self._search = None
            self._settle()
            self._print(*finished_text(event))
        elif search is None:
            if isinstance(event, EvaluationProgress) and self._stage is not None:
                self._stage.done, self._stage.total = event.done, event.total
                self._stage.unit = title(event.what)
        elif isinstance(event, TrialStarted):
            search.current, search.progress = event.number, None
            search.completed, search.n_trials = event.completed, event.n_trials
        elif isinstance(event, EvaluationProgress):
            search.progress = event
        elif isinstance(event, TrialFinished):
            search.take(event)
            if event.trial.state == "failed":
                self._print(failure_text(event.trial), "warning")

    def _print(self, text: str, level: str = "info") -> None:
        """Print a line that stays, with a symbol; what does not fit is indented below it."""
        symbol, style = _SYMBOLS.get(level, _SYMBOLS["info"])
        line = Table.grid(padding=(0, 1))
        line.add_row(
            Text(symbol, style=style), Text(safe(text), style=style if level == "warning" else "")
        )
        self.console.print(line)

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        stage, search = self._stage, self._search
        if search is not None:
            parts.append(self._search_panel(search))
        if stage is not None:
            parts.append(_stage_line(stage, self._spinner))
        return Group(*parts)

    def _search_panel(self, search: Search) -> Panel:
        rows = max(self.console.height - PANEL_LINES, 1)
        footer = " · ".join(part for part in (search.times(), memory_text()) if part)
        return Panel(
            Group(
                _progress_lines(search),
                front_table(
                    search.front,
                    search.baseline,
                    limit=rows,
                    heading="front so far",
                    statistics=False,
                ),
                Text(f"{footer}\nCtrl+C ends the search and keeps what was found", style="dim"),
            ),
            title="search",
            title_align="left",
            box=ROUNDED,
            width=min(self.console.width, PANEL_WIDTH),
        )


def _stage_line(stage: Stage, spinner: Spinner) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    cells: list[RenderableType] = [spinner, Text(safe(stage.title))]
    if stage.total:
        cells += [_bar(stage.done, stage.total), Text(f"{stage.done}/{stage.total} {stage.unit}")]
    elapsed = time.monotonic() - stage.started
    if elapsed >= 1:
        cells.append(Text(format_duration(elapsed), style="dim"))
    line.add_row(*cells)
    return line


def _progress_lines(search: Search) -> Table:
    """Three lines: trials done, what is being computed, the last trial's scores."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    done = Table.grid(padding=(0, 1))
    done.add_row(
        _bar(search.completed, search.n_trials),
        Text(count_of(search.completed, search.n_trials)),
    )
    grid.add_row("trials", done)
    now = "-" if search.current is None else f"trial {search.current}"
    grid.add_row("now", _evaluation(now, search.progress))
    grid.add_row("last", _last_trial(search.last))
    return grid


def _evaluation(now: str, progress: EvaluationProgress | None) -> RenderableType:
    if progress is None:
        return Text(now)
    speed = progress.tokens_per_second
    row = Table.grid(padding=(0, 1))
    row.add_row(
        _bar(progress.done, progress.total),
        Text(f"{now}: {title(progress.what)} {progress.done}/{progress.total}"),
        Text("" if speed is None else f"{speed:,.0f} tokens/s", style="dim"),
    )
    return row


def _last_trial(trial: Trial | None) -> Text:
    if trial is None:
        return Text("-")
    if trial.state == "failed":
        return Text(failure_text(trial), style="yellow", overflow="ellipsis", no_wrap=True)
    took = f" ({format_duration(trial.seconds)})" if trial.seconds else ""
    line = f"trial {trial.number}: {scores_text(trial.scores)}{took}{ended_early(trial)}"
    return Text(line, overflow="ellipsis", no_wrap=True)


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=max(total, 1), completed=min(done, total), width=BAR_WIDTH)
