"""Events of a run as JSON lines, for the report, for the web page, and for trackers.

Each line of `events.jsonl` is an object with `at` (ISO 8601 in UTC), `event` (the name of the
event, see `heretic.events`) and what the event says. Plans are left out: the journal holds them. A
command begins with `CommandStarted` and ends with `CommandEnded`, unless it is killed.

The file is a record of what was shown, as the log is: nothing is computed from it, so that it has
no digest, and a line that was cut by a kill is left out when it is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from heretic.errors import RunError
from heretic.events import (
    EvaluationProgress,
    Event,
    SearchStarted,
    StageProgress,
    TrialFinished,
)
from heretic.records.trial import Trial
from heretic.system.files import open_own, refuse_odd
from heretic.system.secrets import masked

EVENTS = "events.jsonl"
VERSION = 1
STARTED, ENDED = "CommandStarted", "CommandEnded"

LEAST_SECONDS = 0.5
"""Between two lines on the progress of one thing: more would only make the file long."""

BEFORE = "Imports and prompts"
"""What a command does before it knows its run folder."""

Now = Callable[[], datetime]


class EventsFile:
    """A reporter that appends events to a file.

    Where the file cannot be written, such as on a full disk, the work goes on without it.
    """

    def __init__(self, path: Path, now: Now = lambda: datetime.now(UTC)) -> None:
        self._path, self._now = path, now
        self._progress: datetime | None = None
        self._is_broken = False

    def emit(self, event: Event) -> None:
        """Append an event; of progress, not every step."""
        at = self._now()
        if isinstance(event, StageProgress | EvaluationProgress):
            last, is_last = self._progress, event.done == event.total
            if last and (at - last).total_seconds() < LEAST_SECONDS and not is_last:
                return
            self._progress = at
        self.write(type(event).__name__, said_by(event), at)

    def write(self, name: str, content: Mapping[str, Any], at: datetime | None = None) -> None:
        """Append a line of that name."""
        if self._is_broken:
            return
        stamp = (at or self._now()).isoformat(timespec="milliseconds")
        line = masked(json.dumps({"at": stamp, "event": name, **content})) + "\n"
        try:
            descriptor = open_own(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError:
            self._is_broken = True


@contextmanager
def recording_to(path: Path, since: float = 0.0) -> Iterator[EventsFile]:
    """Append the events of a command to a file; its last line says what ended the command.

    Args:
        since: Seconds for which the command has run already.

    Raises:
        RunError: The path is a link, or no file.
    """
    file = EventsFile(path)
    file.write(STARTED, {"version": VERSION, "pid": os.getpid(), "since": since})
    try:
        yield file
    except BaseException as error:
        file.write(ENDED, {"reason": type(error).__name__})
        raise
    file.write(ENDED, {"reason": "done"})


def said_by(event: Event) -> dict[str, Any]:
    """What an event says, JSON-ready."""
    if isinstance(event, TrialFinished):
        found = asdict(event)
        return found | {
            "trial": _trial(event.trial),
            "front": [trial.number for trial in event.front],
        }
    if isinstance(event, SearchStarted):
        scores = [score.to_dict() for score in event.baseline]
        return asdict(event) | {"baseline": scores}
    return asdict(event)


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state,
        "failure": trial.failure,
        "seconds": trial.seconds,
        "scores": [score.to_dict() for score in trial.scores],
    }


def read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of events, in order; none without a file, and none that are malformed.

    Raises:
        RunError: The file cannot be read.
    """
    try:
        refuse_odd(path)
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error
    return [row for row in map(_parsed, lines) if row is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        datetime.fromisoformat(row["at"])
        return row if isinstance(row.get("event"), str) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class StageTime:
    """A stage of a command, and the seconds that it took.

    Attributes:
        command: Number of the command in the run, from 1: a run may go on several times.
        finished: Whether its end was recorded.
    """

    title: str
    seconds: float
    command: int
    finished: bool = True


def stage_times(events: Sequence[Mapping[str, Any]]) -> list[StageTime]:
    """The time between a stage's start and its end; of the search, what no stage within it took.

    Time between stages belongs to none.
    """
    found: list[StageTime] = []
    command, open_stage, search, inside = 1, None, None, 0.0
    for number, row in enumerate(events):
        at, name = _seconds(row), row["event"]
        if name == STARTED:
            if search is not None:  # the command before was killed
                end = _seconds(events[number - 1])
                found.append(StageTime("Search", end - search - inside, command, False))
            command += number > 0
            open_stage = search = None
            found.append(StageTime(BEFORE, _number(row.get("since")), command))
        closes = name in ("StageStarted", "StageFinished", "SearchFinished", ENDED)
        if open_stage is not None and closes:
            title, since = open_stage
            found.append(StageTime(title, at - since, command, name == "StageFinished"))
            inside += at - since
            open_stage = None
        if name == "StageStarted":
            open_stage = str(row.get("title", "")), at
        elif name == "SearchStarted":
            search, inside = at, 0.0
        elif search is not None and name in ("SearchFinished", ENDED):
            finished = name == "SearchFinished"
            found.append(StageTime("Search", at - search - inside, command, finished))
            search = None
    if search is not None:  # it goes on, or was killed
        found.append(StageTime("Search", _seconds(events[-1]) - search - inside, command, False))
    return found


def work_times(events: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds for which commands had worked on the run at each line; pauses do not count."""
    found: list[float] = []
    done = began = last = 0.0
    for number, row in enumerate(events):
        at = _seconds(row)
        if row["event"] == STARTED or number == 0:
            done += last - began
            began = at - _number(row.get("since"))
        last = at
        found.append(done + at - began)
    return found


def trial_times(events: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Seconds of work after which each trial had ended, by its number."""
    ended = zip(events, work_times(events), strict=True)
    return {int(row["trial"]["number"]): at for row, at in ended if row["event"] == "TrialFinished"}


def _seconds(row: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(row["at"]).timestamp()


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
