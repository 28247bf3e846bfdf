"""Reads all that a page shows from a run folder, which may be in use or left in the middle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from heretic.errors import RunError
from heretic.records.selection import named_rows
from heretic.records.trial import Score, Trial, front
from heretic.runs.events import STARTED, read_events
from heretic.runs.folder import RunFolder
from heretic.runs.listing import state_of
from heretic.runs.manifest import RunManifest
from heretic.runs.shown import Shown, read_shown

Event = Mapping[str, Any]

_OF_REPORT = "Replies, geometry, sizes of edits, held-out scores and scores from disk"

MARGIN = timedelta(seconds=1)
"""A manifest's time has no fractions of a second."""


@dataclass(frozen=True, slots=True)
class RunData:
    """A run as far as it has come.

    Attributes:
        state: `running`, `finished` or `unfinished`.
        front: Sorted by objectives.
        shown: Empty for a run of an earlier release.
        events: Of the commands that worked on this run.
        chosen: Number of the trial that was saved last; None if none was.
        missing: What the page lacks, with the reason, a sentence each.
        proposed: Numbers of the trials that the front proposes, each with its names.
        renamed: What the run is called beside others of its name.
    """

    path: Path
    manifest: RunManifest
    state: str
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    shown: Shown
    events: tuple[Event, ...]
    chosen: int | None
    missing: tuple[str, ...] = field(default=())
    proposed: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    renamed: str = ""

    @property
    def name(self) -> str:
        """Its folder's name, after another's where runs that are compared share it."""
        return self.renamed or self.path.name

    @property
    def baseline(self) -> tuple[Score, ...]:
        """Scores of the unedited model."""
        return self.manifest.baseline

    @property
    def focus(self) -> int | None:
        """Number of the chosen trial, else of the knee; None without a front."""
        knees = [number for number, names in self.proposed.items() if "knee" in names]
        return next(iter(knees), None) if self.chosen is None else self.chosen

    @property
    def ended_early(self) -> int:
        """How many trials were ended since another is better: their figures are bounds."""
        return sum(trial.state == "complete" and trial.pruned for trial in self.trials)

    def trial(self, number: int) -> Trial | None:
        """The trial of that number; None if there is none."""
        return next((trial for trial in self.trials if trial.number == number), None)

    def label(self, number: int) -> str:
        """A trial's number with its names, e.g. `trial 12 (knee)`."""
        names = self.proposed.get(number)
        return f"trial {number} ({', '.join(names)})" if names else f"trial {number}"


def read_run(path: Path) -> RunData:
    """Read a run folder.

    Raises:
        RunError: It holds no run, or its manifest or journal is damaged.
    """
    folder = RunFolder(path)
    manifest = folder.require_manifest()
    trials = tuple(folder.read_trials())
    rows = tuple(front(trials))
    missing = []
    try:
        shown = read_shown(folder)
        if shown is None:
            missing.append(f"{_OF_REPORT}: this run has not kept them.")
    except RunError as error:
        shown = None
        missing.append(f"{_OF_REPORT}: {error.message}")
    events = _of_this_run(read_events(folder.events_path), manifest)
    if not events:
        missing.append("Times: this run has not kept its events.")
    if not rows:
        missing.append("A front: no trial is complete yet.")
    elif shown is not None:
        missing += _of_trials(shown, manifest)
    shown = shown or Shown()
    known = {trial.number for trial in trials}
    saved = [one.trial for one in shown.exports if one.trial in known]
    chosen = saved[-1] if saved else None
    state = state_of(folder, manifest, trials)
    told = tuple(dict.fromkeys(missing))
    named = _proposed(rows)
    return RunData(path, manifest, state, trials, rows, shown, events, chosen, told, proposed=named)


def _of_trials(shown: Shown, manifest: RunManifest) -> list[str]:
    """What is missing about the trials of a run that keeps it, with the reason."""
    missing = []
    if not shown.sizes:
        missing.append("Replies of proposed trials: they are made when a search ends.")
    elif not shown.replies and manifest.settings.get("keep_replies") is False:
        missing.append("Prompts and replies: `keep_replies` was off.")
    if not shown.exports:
        missing.append("Held-out scores and scores from disk: no trial has been saved.")
    return missing


def _proposed(rows: tuple[Trial, ...]) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for name, row in named_rows(rows).items():
        number = rows[row].number
        found[number] = (*found.get(number, ()), name)
    return found


def _of_this_run(events: list[dict[str, Any]], manifest: RunManifest) -> tuple[Event, ...]:
    """The events from the command that began the run: the folder may have held one before."""
    if not manifest.created:
        return tuple(events)
    begun = datetime.fromisoformat(manifest.created) + MARGIN
    starts = [number for number, row in enumerate(events) if row["event"] == STARTED]
    before = [number for number in starts if datetime.fromisoformat(events[number]["at"]) <= begun]
    first = before[-1] if before else (starts[0] if starts else 0)
    return tuple(events[first:])


def told_apart(runs: Sequence[RunData]) -> list[RunData]:
    """The same runs, each with a name of its own: a number follows names that are shared."""
    counts = Counter(run.path.name for run in runs)
    return [
        replace(run, renamed=f"{run.path.name} ({number})") if counts[run.path.name] > 1 else run
        for number, run in enumerate(runs, start=1)
    ]
