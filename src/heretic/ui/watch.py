"""Follows a run folder while somebody, perhaps another process, works on it.

The events bring each trial as it ends. The journal, which is the truth and holds the plans, is read
when the page is opened, when a command has begun or ended, and when a plan is wanted.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

from heretic.errors import RunError
from heretic.records.plan import Plan
from heretic.records.trial import Score, Trial
from heretic.report.page.run import RunData, read_run
from heretic.runs.events import ENDED, STARTED
from heretic.runs.folder import RunFolder
from heretic.runs.listing import state_of
from heretic.system.files import refuse_odd

LEAST_SECONDS = 0.25
"""Between two looks at the folder, however many tabs ask."""

LOCK_SECONDS = 1.0
MOST_NOTICES = 50
MOST_BYTES = 4 * 2**20
"""Of events that one look reads."""

_UNREAD = Plan.create(
    direction_scope="per layer", direction_index=None, kernels={}, row_normalization="none"
)
"""Stands for the plan of a trial whose journal has not been read since."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What is being done; `done` of `total` units, None where that is not known."""

    title: str
    done: int | None = None
    total: int | None = None
    unit: str = ""


@dataclass(slots=True)
class Progress:
    """How far the command has come that last worked on a run.

    Attributes:
        remaining: Seconds that the search still takes, at the time `told`; None if unknown.
        within: What is computed of the trial in progress.
        ended: What ended the command: `done`, or an error's name; None while it works.
    """

    stage: Stage | None = None
    within: Stage | None = None
    trial: int | None = None
    completed: int = 0
    target: int | None = None
    remaining: float | None = None
    told: datetime | None = None
    searching: bool = False
    ended: str | None = None
    notices: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=MOST_NOTICES))

    def left(self, now: datetime) -> float | None:
        """Seconds left of the search, less what has passed since it was told."""
        if self.remaining is None or self.told is None:
            return None
        return max(0.0, self.remaining - (now - self.told).total_seconds())


class Watch:
    """One run folder, shared by all tabs.

    Attributes:
        version: Grows whenever what is shown may have changed.
        trials_version: Grows with the trials.
        reads: How often the run was read as a whole.
        error: Why the run cannot be read; None if it can.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = RunFolder(path)
        self.version = self.trials_version = self.reads = 0
        self.error: str | None = None
        self.progress = Progress()
        self.is_locked = False
        self._lock = Lock()  # tabs look in threads
        self._data: RunData | None = None
        self._trials: dict[int, Trial] = {}
        self._offset = 0
        self._looked = self._asked_lock = float("-inf")
        self._stale = True
        self._marks: tuple[object, ...] = ()

    @property
    def trials(self) -> list[Trial]:
        """The trials so far, by number; plans of the newest may be unread."""
        trials = self._trials  # another thread may put another in its place
        return [trials[number] for number in sorted(trials)]

    @property
    def data(self) -> RunData | None:
        """The run as it was last read as a whole; None if it cannot be."""
        return self._data

    @property
    def state(self) -> str:
        """`running`, `finished`, `unfinished` or `unreadable`."""
        if self.error is not None or self._data is None:
            return "unreadable"
        if self.is_locked:
            return "running"
        found = state_of(self.folder, self._data.manifest, self.trials)
        return "unfinished" if found == "running" else found

    def look(self) -> None:
        """Read what is new; at most every `LEAST_SECONDS`."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        now = monotonic()
        if now - self._looked < LEAST_SECONDS:
            return
        self._looked = now
        if now - self._asked_lock >= LOCK_SECONDS:
            self._asked_lock = now
            locked = self.folder.is_locked
            if locked != self.is_locked:
                self.is_locked = locked
                self._stale = True
        marks = self._marked()
        if marks != self._marks:
            self._marks = marks
            self._stale = True
        self._follow()
        if self._stale:
            self._read()

    def read(self) -> None:
        """Read the run as a whole."""
        with self._lock:
            self._read()

    def _read(self) -> None:
        self._stale = False
        self.version += 1
        self.reads += 1
        try:
            self._data = read_run(self.path)
        except RunError as error:
            self.error = str(error)
            return
        self.error = None
        read = {trial.number: trial for trial in self._data.trials}
        # A trial whose end was told is in the journal, or the journal was taken back.
        if list(read) != list(self._trials) or any(
            trial.plan is _UNREAD for trial in self._trials.values()
        ):
            self.trials_version += 1
        self._trials = read

    def trial(self, number: int) -> Trial | None:
        """A trial with its plan; None if there is none."""
        with self._lock:
            found = self._trials.get(number)
            if found is not None and found.plan is _UNREAD:
                self._read()
                found = self._trials.get(number)
        return None if found is None or found.plan is _UNREAD else found

    def _marked(self) -> tuple[object, ...]:
        """What tells that files that change seldom have changed."""
        # The manifest is written anew after every trial; whether there is one is what counts.
        is_there, reported = False, None
        with suppress(OSError):
            is_there = self.folder.manifest_path.exists()
        with suppress(OSError):
            reported = (self.path / "report.json").stat().st_mtime_ns
        return (is_there, reported)

    def _follow(self) -> None:
        """Take in the events that were written since."""
        path = self.folder.events_path
        try:
            refuse_odd(path)
            size = path.stat().st_size
            if size < self._offset:  # another file
                self._offset, self._stale = 0, True
            if size == self._offset:
                return
            with path.open("rb") as file:
                file.seek(self._offset)
                content = file.read(MOST_BYTES)
        except (OSError, RunError):
            return
        whole = content.rfind(b"\n") + 1
        if not whole and len(content) == MOST_BYTES:
            whole = len(content)  # no event has such a line
        self._offset += whole
        for line in content[:whole].splitlines():
            with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
                self._take(json.loads(line))
        if whole:
            self.version += 1

    def _take(self, row: Mapping[str, Any]) -> None:
        at = datetime.fromisoformat(row["at"])
        progress, name = self.progress, row["event"]
        if name == STARTED:
            self.progress = Progress(target=progress.target, completed=progress.completed)
            self._stale = True
        elif name == ENDED:
            progress.ended = str(row["reason"])
            progress.stage = progress.within = progress.trial = progress.remaining = None
            progress.searching = False
            self._stale = True
        elif name == "Notice":
            progress.notices.append((str(row["level"]), str(row["text"])))
        elif name == "StageStarted":
            progress.stage = Stage(str(row["title"]), None, row.get("total"))
        elif name == "StageProgress" and progress.stage is not None:
            progress.stage = Stage(
                progress.stage.title, int(row["done"]), int(row["total"]), str(row["unit"])
            )
        elif name == "StageFinished":
            progress.stage = None
        else:
            self._take_search(name, row, at)

    def _take_search(self, name: str, row: Mapping[str, Any], at: datetime) -> None:
        progress = self.progress
        if name == "SearchStarted":
            progress.searching, self._stale = True, True
            progress.completed, progress.target = int(row["completed"]), int(row["n_trials"])
        elif name == "TrialStarted":
            progress.trial, progress.within = int(row["number"]), None
        elif name == "EvaluationProgress":
            progress.within = Stage(str(row["what"]), int(row["done"]), int(row["total"]))
        elif name == "TrialFinished":
            progress.completed, progress.target = int(row["completed"]), int(row["n_trials"])
            progress.remaining, progress.told = row["remaining"], at
            progress.trial = progress.within = None
            self._add(row["trial"])
        elif name == "SearchFinished":
            progress.searching, progress.remaining = False, None
            self._stale = True

    def _add(self, row: Mapping[str, Any]) -> None:
        """A trial of which an event tells, unless the journal has told it already."""
        number = int(row["number"])
        if number in self._trials or self._stale:  # stale: all will be read
            return
        trial = Trial(
            number,
            _UNREAD,
            tuple(map(Score.from_dict, row["scores"])),
            "failed" if row["state"] == "failed" else "complete",
            None if row["failure"] is None else str(row["failure"]),
            float(row["seconds"]),
        )
        self._trials = {**self._trials, number: trial}
        self.trials_version += 1


class Watches:
    """The runs that are watched, by path."""

    MOST = 32

    def __init__(self) -> None:
        self._found: dict[Path, Watch] = {}

    def of(self, path: Path) -> Watch:
        """The watch of a run; the same one for all tabs."""
        path = Path(os.path.realpath(path))
        watch = self._found.pop(path, None) or Watch(path)
        self._found[path] = watch
        while len(self._found) > self.MOST:  # tabs that still show it keep it
            del self._found[next(iter(self._found))]
        return watch


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)
