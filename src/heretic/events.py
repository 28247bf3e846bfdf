"""Progress as typed events. The stages emit them; the command line shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from heretic.records.trial import Score, Trial

BROKEN_OFF = "broken off"
"""What the end of a stage says that did not finish its work."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One line for the user. `level` is `info`, `warning` or `success`."""

    text: str
    level: str = "info"


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage of the pipeline begins, e.g. `Loading model`."""

    title: str
    total: int | None = None


@dataclass(frozen=True, slots=True)
class StageProgress:
    """`done` of `total` units of the current stage are finished."""

    done: int
    total: int
    unit: str = "prompts"


@dataclass(frozen=True, slots=True)
class StageFinished:
    """The current stage ended; `summary` gives its result in one line."""

    summary: str = ""


@dataclass(frozen=True, slots=True)
class SearchStarted:
    """The search begins, or resumes with `completed` trials."""

    completed: int
    n_trials: int
    baseline: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """Trial `number` is being evaluated."""

    number: int
    completed: int
    n_trials: int


@dataclass(frozen=True, slots=True)
class EvaluationProgress:
    """Progress within a trial: what is computed (`kl_divergence`, `replies`), `done` of `total`."""

    what: str
    done: int
    total: int
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class TrialFinished:
    """A trial completed or failed.

    `front` is sorted as shown to the user. `elapsed` and `remaining` are seconds; `remaining` is
    None where it cannot be estimated.
    """

    trial: Trial
    front: Sequence[Trial]
    completed: int
    n_trials: int
    elapsed: float
    remaining: float | None


@dataclass(frozen=True, slots=True)
class SearchFinished:
    """The search ended. `reason` is `done`, `stagnant`, `time`, `interrupted` or `failed`.

    `time_limit` is the limit that ended it, in seconds; None for other reasons.
    """

    reason: str
    completed: int
    elapsed: float
    n_trials: int | None = None
    time_limit: float | None = None


Event = (
    Notice
    | StageStarted
    | StageProgress
    | StageFinished
    | SearchStarted
    | TrialStarted
    | EvaluationProgress
    | TrialFinished
    | SearchFinished
)


class Reporter(Protocol):
    """Receives events and shows progress."""

    def emit(self, event: Event) -> None:
        """Handle one event. It must not raise and must return quickly."""


class Several:
    """Hands each event to several reporters, in their order."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def emit(self, event: Event) -> None:
        """Hand the event on."""
        for reporter in self._reporters:
            reporter.emit(event)


class _Stages:
    """Hands each event on, and knows whether a stage is open."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.is_open = False

    def emit(self, event: Event) -> None:
        """Hand the event on."""
        self._reporter.emit(event)
        if isinstance(event, StageStarted | StageFinished):
            self.is_open = isinstance(event, StageStarted)


@contextmanager
def whole_stages(reporter: Reporter) -> Iterator[Reporter]:
    """A reporter for work that may fail while the run goes on: its last stage then ends, too.

    Without that, what comes later would count as time of the stage that failed.
    """
    stages = _Stages(reporter)
    try:
        yield stages
    finally:
        if stages.is_open:
            stages.emit(StageFinished(BROKEN_OFF))


class Silent:
    """A reporter that shows nothing; the default for library use."""

    def emit(self, event: Event) -> None:
        """Drop the event."""
