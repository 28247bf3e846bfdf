"""What both displays keep: the running stage and the search so far, and the texts about them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console

from heretic.cli.display.tables import scores_text
from heretic.cli.display.text import memory_text
from heretic.events import EvaluationProgress, Event, Notice, SearchFinished, TrialFinished
from heretic.records.trial import Score, Trial
from heretic.system.display import count_of, format_duration, safe

_REASONS = {
    "done": ("Search", "success"),
    "stagnant": ("Search ended, because the front has stopped growing", "success"),
    "interrupted": ("Search interrupted; what was found is kept", "warning"),
    "failed": ("Search ended after too many failures", "warning"),
}


@dataclass
class Stage:
    """The stage that runs now."""

    title: str
    done: int = 0
    total: int | None = None
    unit: str = ""
    started: float = field(default_factory=time.monotonic)

    def summary(self, text: str) -> str:
        """The line that stays once the stage has finished."""
        seconds = time.monotonic() - self.started
        took = f" ({format_duration(seconds)})" if seconds >= 1 else ""
        return f"{self.title}: {text}{took}" if text else f"{self.title}{took}"


@dataclass
class Search:
    """The search so far."""

    completed: int
    n_trials: int
    baseline: tuple[Score, ...]
    front: tuple[Trial, ...] = ()
    last: Trial | None = None
    current: int | None = None
    progress: EvaluationProgress | None = None
    remaining: float | None = None
    elapsed: float = 0.0
    updated: float = field(default_factory=time.monotonic)

    def take(self, event: TrialFinished) -> None:
        """Update everything after a trial."""
        self.completed, self.n_trials = event.completed, event.n_trials
        self.front, self.last = tuple(event.front), event.trial
        self.elapsed, self.remaining = event.elapsed, event.remaining
        self.updated = time.monotonic()
        self.current = self.progress = None

    def times(self) -> str:
        """Elapsed and remaining time, as known after the last trial and updated since."""
        since = time.monotonic() - self.updated
        text = f"elapsed {format_duration(self.elapsed + since)}"
        if self.remaining is not None:
            text += f" · about {format_duration(max(self.remaining - since, 0.0))} left"
        return text


class ReporterBase:
    """What both displays share: events that fail to show are dropped, and leaving closes them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._stage: Stage | None = None
        self._search: Search | None = None
        self._notices: set[Notice] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the stage and the search that were running."""
        self._stage = self._search = None

    def emit(self, event: Event) -> None:
        """Show one event. A terminal that was closed must not cost the results.

        A notice that has been shown is not shown again, such as when a model is loaded once more.
        """
        if isinstance(event, Notice):
            if event in self._notices:
                return
            self._notices.add(event)
        try:
            self._show(event)
        except (OSError, ValueError):  # the second: standard output is closed
            self.close()

    def _show(self, event: Event) -> None:
        raise NotImplementedError


def failure_text(trial: Trial) -> str:
    """Why a trial has no scores, in one line."""
    reason = " ".join((trial.failure or "unknown reason").split())
    return f"trial {trial.number} failed: {safe(reason)}"


def ended_early(trial: Trial) -> str:
    """Why scores are missing, to follow them; empty if they are all there."""
    return " (ended early: another trial is better)" if trial.pruned else ""


def finished_text(event: SearchFinished) -> tuple[str, str]:
    """How the search ended, and the level of that line."""
    if event.time_limit is not None:
        limit = format_duration(event.time_limit).removesuffix(" 0s").removesuffix(" 0m")
        done = count_of(event.completed, event.n_trials)
        return f"Time limit of {limit} reached: {done} trials", "success"
    took = f"{event.completed} trials in {format_duration(event.elapsed)}"
    text, level = _REASONS[event.reason]
    return f"{text}: {took}", level


def trial_line(event: TrialFinished) -> str:
    """A finished trial in one line, with the state of the search."""
    trial = event.trial
    told = failure_text(trial) if trial.state == "failed" else ""
    parts = [
        told or f"trial {trial.number}: {scores_text(trial.scores)}{ended_early(trial)}",
        f"{count_of(event.completed, event.n_trials)} trials",
        f"front of {len(event.front)}",
        f"elapsed {format_duration(event.elapsed)}",
    ]
    if event.remaining is not None:
        parts.append(f"about {format_duration(event.remaining)} left")
    memory = memory_text()
    return "; ".join([*parts, memory] if memory else parts)
