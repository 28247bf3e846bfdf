"""Trials as records in a search's journal, one line each, readable without Optuna.

The journal (`optuna.storages.journal`) is a file of JSON lines. Each finished trial is a user
attribute in a line of its own, so listing runs, showing a front and exporting a trial need no
Optuna.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from heretic.errors import RunError
from heretic.records.plan import Plan
from heretic.records.trial import Score, Trial
from heretic.runs.manifest import SCHEMA_VERSION

TRIAL_KEY = "heretic_trial"
INTERRUPTED = "interrupted"
"""Failure of a trial whose evaluation was interrupted; its plan is evaluated again."""

_REMEDY = "Start the run over (checkpoint_action = restart), or remove the folder."


def trial_to_record(trial: Trial) -> dict[str, Any]:
    """JSON-ready form of a trial with all its fields."""
    return {
        "schema_version": SCHEMA_VERSION,
        "number": trial.number,
        "plan": trial.plan.to_dict(),
        "scores": [score.to_dict(with_values=True) for score in trial.scores],
        "state": trial.state,
        "failure": trial.failure,
        "seconds": trial.seconds,
    }


def trial_from_record(record: Mapping[str, Any]) -> Trial:
    """Read what `trial_to_record` wrote.

    Raises:
        RunError: The record is malformed, or was written by a newer release.
    """
    version = record.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise RunError(
            f"A trial has schema version {version!r}; this release reads {SCHEMA_VERSION}.",
            remedy="Upgrade heretic-llm.",
        )
    try:
        return Trial(
            number=record["number"],
            plan=Plan.from_dict(record["plan"]),
            scores=tuple(Score.from_dict(score) for score in record["scores"]),
            state=record["state"],
            failure=record["failure"],
            seconds=record["seconds"],
        )
    except (KeyError, TypeError) as error:
        raise RunError(f"Not a trial: {error!r}.", remedy=_REMEDY) from error


def read_trials(journal: Path) -> list[Trial]:
    """Read the finished trials of a journal, sorted by number; an incomplete last line is ignored.

    Interrupted trials with a known plan are included as failed. Numbers may have gaps.

    Raises:
        RunError: A line is damaged, or was written by a newer release.
    """
    trials: dict[int, Trial] = {}
    for number, line in enumerate(_whole_lines(journal), start=1):
        if TRIAL_KEY.encode() not in line:
            continue
        try:
            record = json.loads(line)["user_attr"][TRIAL_KEY]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(journal, number) from error
        trial = trial_from_record(record)
        trials[trial.number] = trial
    return [trials[number] for number in sorted(trials)]


def repair(journal: Path) -> int:
    """Cut off an incomplete last line that a killed process left; needs the run's lock.

    Optuna's reader ignores an incomplete last line, but its writer would append to it.

    Returns:
        Number of bytes cut off.

    Raises:
        RunError: A line before the last is damaged.
    """
    if not journal.exists():
        return 0
    lines = list(_whole_lines(journal))
    if lines and not _is_json(lines[-1]):  # blocks that did not reach the disk before a power cut
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not _is_json(line):
            raise _damaged(journal, number)
    length = sum(map(len, lines))
    excess = journal.stat().st_size - length
    if excess:
        with journal.open("rb+") as file:
            file.truncate(length)
            file.flush()
            os.fsync(file.fileno())
    return excess


def _whole_lines(journal: Path) -> Iterator[bytes]:
    if not journal.exists():
        return
    with journal.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _damaged(journal: Path, line: int) -> RunError:
    return RunError(f"The journal {journal} is damaged in line {line}.", remedy=_REMEDY)
