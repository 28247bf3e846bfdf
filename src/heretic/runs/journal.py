"""Trials as records in a search's journal, one line each, readable without Optuna.

The journal (`optuna.storages.journal`) is a file of JSON lines. Each finished trial is a user
attribute in a line of its own, so listing runs, showing a front and exporting a trial need no
Optuna.

Every line ends with a check value of itself and of all lines before it, in a field that Optuna
does not look at. So a changed byte, a lost line and a line of another journal are all found. Lines
of earlier releases, which have none, come first; the first check value covers them too.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heretic.errors import RunError
from heretic.records import parse
from heretic.records.plan import Plan
from heretic.records.trial import Score, Trial
from heretic.runs.manifest import SCHEMA_VERSION, JournalMark
from heretic.system.files import cannot_write, open_own, refuse_odd

TRIAL_KEY = "heretic_trial"
INTERRUPTED = "interrupted"
"""Failure of a trial whose evaluation was interrupted; its plan is evaluated again."""

_CHECKED = re.compile(rb'(.*),"crc":"([0-9a-f]{8})"}\n', re.DOTALL)
_REMEDY = "Start the run over (checkpoint_action = restart), or remove the folder."


class LostEndError(RunError):
    """The journal is shorter than it was: trials that had been kept are gone."""


# --- records ---------------------------------------------------------------------------------


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


def trial_from_record(record: object) -> Trial:
    """Read what `trial_to_record` wrote.

    Raises:
        RunError: The record is malformed, or was written by a newer release.
    """
    version = record.get("schema_version") if isinstance(record, Mapping) else None
    if isinstance(version, bool) or not isinstance(version, int) or version > SCHEMA_VERSION:
        raise RunError(
            f"A trial has schema version {version!r}; this release reads {SCHEMA_VERSION}.",
            remedy="Update Heretic.",
        )
    try:
        found = parse.table(record, "the trial")
        failure = found["failure"]
        return Trial(
            number=parse.whole(found["number"], "number", 0),
            plan=Plan.from_dict(found["plan"]),
            scores=tuple(map(Score.from_dict, parse.rows(found["scores"], "scores"))),
            state=parse.one_of(found["state"], "state", ("complete", "failed")),
            failure=None if failure is None else parse.text(failure, "failure"),
            seconds=parse.number(found["seconds"], "seconds"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"Not a trial: {error!r}.", remedy=_REMEDY) from error


def read_trials(journal: Path, mark: JournalMark | None = None) -> list[Trial]:
    """Read the finished trials of a journal, sorted by number; an incomplete last line is ignored.

    Interrupted trials with a known plan are included as failed. Numbers may have gaps.

    Args:
        mark: How far the journal had come when the manifest was last written.

    Raises:
        RunError: A line is damaged, or was written by a newer release.
        LostEndError: Lines before the mark are gone.
    """
    found = scan(journal, mark)
    if found.lost:
        raise LostEndError(
            f"The journal {journal} has lost its end: {found.length} of at least "
            f"{found.length + found.lost} bytes are left.",
            remedy="Restore it from a copy; or start the search again, which goes on from the "
            "trials that are left.",
        )
    trials: dict[int, Trial] = {}
    for number, line in found.records:
        try:
            record = json.loads(line)["user_attr"][TRIAL_KEY]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(journal, number) from error
        trial = trial_from_record(record)
        trials[trial.number] = trial
    searched = {_searched(trial) for trial in trials.values() if trial.state == "complete"}
    if len(searched) > 1:
        raise RunError(f"The trials in {journal} have different objectives.", remedy=_REMEDY)
    return [trials[number] for number in sorted(trials)]


def _searched(trial: Trial) -> tuple[str, ...]:
    """What the search does with the trial's scores."""
    return tuple(score.optimization for score in trial.scores if score.optimization != "none")


# --- lines -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Scan:
    """What was found in a journal.

    Attributes:
        records: Number and content of the lines that hold a trial.
        length: Bytes of all whole lines.
        crc: Check value of all of them.
        excess: Bytes behind them: a line whose end is missing.
        checked: Whether the last whole line has a check value.
        lost: Bytes that are missing at the end, if it is shorter than its mark.
    """

    records: list[tuple[int, bytes]] = field(default_factory=list)
    length: int = 0
    crc: int = 0
    excess: int = 0
    checked: bool = False
    lost: int = 0

    @property
    def mark(self) -> JournalMark:
        """How far the journal has come."""
        return JournalMark(self.length, self.crc)


def scan(journal: Path, mark: JournalMark | None = None, *, strict: bool = False) -> Scan:
    """Check every line.

    Args:
        mark: How far the journal had come when the manifest was last written.
        strict: Whether lines without check value must be JSON, as Optuna needs it.

    Raises:
        RunError: A line is damaged.
    """
    found = Scan()
    for number, line, is_last in _lines(journal):
        crc, checked = _verified(line, found, strict)
        if crc is None:
            if not is_last or (line.endswith(b"\n") and mark and found.length < mark.length):
                raise _damaged(journal, number, found)
            found.excess = len(line)  # it did not reach the disk as a whole
            break
        found.length += len(line)
        found.crc, found.checked = crc, checked
        if TRIAL_KEY.encode() in line:
            found.records.append((number, line))
        reaches = mark and found.length - len(line) < mark.length <= found.length
        if reaches and mark != found.mark:  # the journal of another run
            raise _damaged(journal, number, found)
    if mark and found.length < mark.length:
        found.lost = mark.length - found.length
    return found


def _lines(journal: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Number and content of each line, and whether it is the last one."""
    refuse_odd(journal)
    if not journal.exists():
        return
    try:
        with journal.open("rb") as file:
            line, number = file.readline(), 1
            while line:
                following = file.readline()
                yield number, line, not following
                line, number = following, number + 1
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"{journal} cannot be read: {reason}.", remedy="Check permissions."
        ) from error


def _verified(line: bytes, before: Scan, strict: bool) -> tuple[int | None, bool]:
    """The check value up to a line, None if it is damaged; and whether the line has one itself."""
    checked = _CHECKED.fullmatch(line)
    if checked:
        crc = zlib.crc32(checked[1], before.crc)
        return (crc if crc == int(checked[2], 16) else None), True
    if before.checked or not line.endswith(b"\n") or (strict and not _is_json(line)):
        return None, False
    return zlib.crc32(line, before.crc), False


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def with_check_value(log: Mapping[str, Any], crc: int) -> tuple[bytes, int]:
    """A line of the journal, and the check value up to it.

    Args:
        log: What the line holds, with at least one key.
        crc: The check value up to the line before.
    """
    text = json.dumps(log, separators=(",", ":")).encode().removesuffix(b"}")
    crc = zlib.crc32(text, crc)
    return text + b',"crc":"%08x"}\n' % crc, crc


class Journal:
    """A journal that is written to; the caller holds the run's lock.

    An incomplete last line that a killed process left is cut off: Optuna's reader ignores it, but
    whatever is appended would continue it.

    Args:
        check: Called before every change; raises if the run is no longer this process's.
        remedy: What the user can do if it cannot be written.

    Raises:
        RunError: A line before the last is damaged, or the journal cannot be written.
    """

    def __init__(
        self,
        path: Path,
        check: Callable[[], None] = lambda: None,
        remedy: str = "Check free space and permissions.",
    ) -> None:
        self.path = path
        self._check = check
        self._remedy = remedy
        found = scan(path, strict=True)
        self._crc, self._length = found.crc, found.length
        self._is_synced = True
        if found.excess or not path.exists():
            with self._opened() as descriptor:
                os.ftruncate(descriptor, found.length)
                os.fsync(descriptor)

    @property
    def mark(self) -> JournalMark:
        """How far the journal has come."""
        return JournalMark(self._length, self._crc)

    def sync(self) -> None:
        """Wait until all lines are on the disk, as they must be before a manifest says so.

        Raises:
            RunError: They cannot be written.
        """
        if not self._is_synced:
            with self._opened() as descriptor:
                os.fsync(descriptor)
            self._is_synced = True

    def append(self, logs: Sequence[Mapping[str, Any]], *, sync: bool = True) -> None:
        """Append lines, and wait until they are on the disk.

        Args:
            sync: False where it would cost nothing to lose them with the power; they reach the disk
                with the next lines that are waited for.

        Raises:
            RunError: They cannot be written, or another program has changed the journal.
        """
        data, crc = b"", self._crc
        for log in logs:
            line, crc = with_check_value(log, crc)
            data += line
        with self._opened() as descriptor:
            if os.fstat(descriptor).st_size != self._length:
                raise RunError(
                    f"Another program has changed {self.path} during the search.",
                    remedy="Nothing was written into it. End the other program, and start again.",
                )
            try:
                _write_all(descriptor, data)
                if sync:
                    os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, self._length)
                raise
        self._crc, self._length = crc, self._length + len(data)
        self._is_synced = sync

    def _opened(self) -> _Descriptor:
        self._check()
        return _Descriptor(self.path, self._remedy)


class _Descriptor:
    """The journal opened to append; errors of the system become `RunError`."""

    def __init__(self, path: Path, remedy: str) -> None:
        self._path, self._remedy = path, remedy
        self._descriptor = -1

    def __enter__(self) -> int:
        try:
            self._descriptor = open_own(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        except OSError as error:
            raise cannot_write(self._path, error, self._remedy) from error
        return self._descriptor

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        os.close(self._descriptor)
        if isinstance(error, OSError):
            raise cannot_write(self._path, error, self._remedy) from error


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _damaged(journal: Path, line: int, found: Scan | None = None) -> RunError:
    kept = len(found.records) if found else 0
    whole = f" The {kept} trials before it are whole." if kept else ""
    cut = f"Or keep only the lines before line {line}: the search then goes on from them. "
    return RunError(
        f"The journal {journal} is damaged in line {line}.{whole}",
        remedy=f"Restore it from a copy. {cut if line > 1 else ''}Or start the run over "
        "(checkpoint_action = restart).",
    )
