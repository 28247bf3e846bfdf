"""Run folders: the files of a run. A kill at any moment loses at most the trials in progress.

| file | holds |
| --- | --- |
| `manifest.json` | what the run is, and digests of the other files (`RunManifest`) |
| `directions.safetensors` | float32 [layers + 1, (k,) hidden]; any trial can be made from them |
| `sweep.json` | plans of the gradient sweep, or of a fit, if the search makes one |
| `fits/` | vectors of fits, and how far one has come that is not finished |
| `baseline.safetensors` | the unedited model's outputs, for use when the run is resumed |
| `trials.journal` | Optuna's journal, which also holds each trial as a self-contained record |
| `front.json` | the front after the last trial |
| `report.json` | replies, geometry and more for the report (`heretic.runs.shown`) |
| `benchmarks/` | results of benchmarks |
| `tracking-id` | under which trackers know the run, if any were told of it |
| `events.jsonl`, `heretic.log` | what was shown, as JSON lines and as text |
| `run.lock` | the lock that excludes other processes |

Every file but the last four is checked when it is read, see `store` and `journal`.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.errors import RunError
from heretic.records.plan import FITS, Plan, fit_file
from heretic.records.selection import names_by_row
from heretic.records.trial import Trial, front
from heretic.runs.events import EVENTS
from heretic.runs.journal import Journal, read_trials, scan
from heretic.runs.lock import is_locked
from heretic.runs.manifest import RunManifest
from heretic.runs.store import (
    BASELINE,
    BENCHMARKS,
    DIRECTIONS,
    DISCARDED,
    FRONT,
    GOES_ON,
    JOURNAL,
    REPORT,
    SWEEP,
    RunFiles,
    digest_of,
    to_json,
)
from heretic.system.files import cannot_write, expanded, write_atomic
from heretic.system.hub import is_local

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GOES_ON", "RunFolder", "digest", "slug", "write_atomic"]

DIGEST_LENGTH = 12
_LOG = "heretic.log"
_TRACKING = "tracking-id"
_TENSOR = "directions"
_FIT = re.compile(re.escape(fit_file("DIGEST")).replace("DIGEST", "([0-9a-f]+)"))


def digest(fingerprint: Mapping[str, Any]) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a JSON-ready mapping, in any key order."""
    text = json.dumps(fingerprint, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_LENGTH]


def slug(model: str) -> str:
    """A model's name as part of a folder's name: readable, but not unique as the digest is.

    `org/name` becomes `org--name`; a path becomes its last part.
    """
    local = is_local(model)
    name = expanded(model).resolve().name if local else model.replace("/", "--")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:80] or "model"


class RunFolder(RunFiles):
    """One run on disk. Reading needs no lock; writing needs `lock()`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._front: str | None = None  # as last written by this object

    @classmethod
    def open(cls, checkpoint_dir: Path, model: str, digest: str) -> RunFolder:
        """The folder of a run, which need not exist; nothing is written.

        The digest alone identifies the run, so a run whose model folder was renamed is found too.
        """
        path = checkpoint_dir / f"{slug(model)}-{digest}"
        others = sorted(checkpoint_dir.glob(f"*-{digest}")) if not path.exists() else []
        return next((found for found in map(cls, others) if found.exists), cls(path))

    @property
    def digest(self) -> str:
        """The run's digest, from the folder's name."""
        return self.path.name.rpartition("-")[2]

    @property
    def has_directions(self) -> bool:
        """Whether the directions have been saved."""
        return (self.path / DIRECTIONS).is_file()

    @property
    def baseline_path(self) -> Path:
        """The file with the unedited model's outputs."""
        return self.path / BASELINE

    @property
    def front_path(self) -> Path:
        """The file with the front."""
        return self.path / FRONT

    @property
    def sweep_path(self) -> Path:
        """The file with the plans of the gradient sweep."""
        return self.path / SWEEP

    @property
    def events_path(self) -> Path:
        """The file with the events."""
        return self.path / EVENTS

    @property
    def log_path(self) -> Path:
        """The file with the log."""
        return self.path / _LOG

    def tracking_id(self) -> str:
        """The id under which trackers know the run: its digest and a random part; needs the lock.

        Another run of the same settings, elsewhere or after this one was discarded, has another.

        Raises:
            RunError: It cannot be written.
        """
        path = self.path / _TRACKING
        with suppress(OSError, UnicodeDecodeError):
            found = path.read_text(encoding="ascii").strip()
            if re.fullmatch("[0-9a-f]{8}", found):
                return f"{self.digest}-{found}"
        drawn = secrets.token_hex(4)
        write_atomic(path, f"{drawn}\n")
        return f"{self.digest}-{drawn}"

    # --- directions, trials, front, sweep --------------------------------------------------

    def save_directions(self, directions: NDArray[np.float32]) -> None:
        """Save the directions, [layers + 1, hidden] or [layers + 1, k, hidden], as float32.

        Raises:
            RunError: They cannot be written.
        """
        self.write_file(DIRECTIONS, _directions_content(directions))

    def had_directions(self, directions: NDArray[np.float32]) -> bool:
        """Whether these are the directions that the run has saved.

        Raises:
            RunError: The manifest is damaged.
        """
        known = self.known()
        mark = known.files.get(DIRECTIONS) if known else None
        return mark is not None and digest_of(_directions_content(directions)) == mark.sha256

    def load_directions(self) -> NDArray[np.float32]:
        """Read the saved directions, float32 [layers + 1, hidden] or [layers + 1, k, hidden].

        Raises:
            RunError: They are missing or damaged.
        """
        import numpy as np
        from safetensors import SafetensorError
        from safetensors.numpy import load

        data = self.read_file(DIRECTIONS)
        if data is None:
            raise self.damaged(DIRECTIONS, "there is no such file")
        try:
            tensor: NDArray[np.float32] = load(data)[_TENSOR]
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise self.damaged(DIRECTIONS, str(error)) from error
        if tensor.dtype != np.float32 or not np.isfinite(tensor).all() or tensor.ndim not in (2, 3):
            raise self.damaged(DIRECTIONS, "it does not hold finite float32 directions")
        return tensor

    def read_trials(self) -> list[Trial]:
        """Read all finished trials from the journal, in order; empty without a journal.

        Raises:
            RunError: The journal is damaged, or was written by a newer release.
        """
        known = self.known()
        return read_trials(self.journal_path, known.journal if known else None)

    def mend(self) -> str | None:
        """Take a journal that has lost its end as it is; needs the lock.

        Returns:
            What was lost, for the user; None if the journal is whole.

        Raises:
            RunError: The journal is damaged before its end.
        """
        known = self.known()
        if known is None or known.journal is None:
            return None
        found = scan(self.journal_path, known.journal)
        if not found.lost:
            return None
        self._journal = None
        self.put(replace(known, journal=found.mark))
        return (
            f"The journal {self.journal_path} has lost its end, {found.lost} bytes: the search "
            f"goes on from the {len(found.records)} trials that are left."
        )

    def open_journal(self) -> Journal:
        """Open the journal to append to it; needs the lock.

        A run of an earlier release gets its digests here.

        Raises:
            RunError: The journal is damaged or cannot be written.
        """
        self.make()
        known = self.known()
        if known is not None and not known.has_checksums:
            self.write_manifest(known)
        self._journal = Journal(self.journal_path, self._lock.check, GOES_ON)
        return self._journal

    def mark_journal(self) -> None:
        """Keep in the manifest how far the journal has come; needs the lock.

        Raises:
            RunError: The manifest is damaged, or cannot be written.
        """
        known = self.known()
        if known and self._journal and known.journal != self._journal.mark:
            self.put(known)

    def write_front(self, trials: Iterable[Trial]) -> None:
        """Write the front of `trials` with the names of its rows, unless the file holds it already.

        Raises:
            RunError: It cannot be written.
        """
        rows = front(trials)
        named = zip(rows, names_by_row(rows), strict=True)
        text = to_json([{**trial.to_dict(), "names": names} for trial, names in named])
        if text != self._front:
            self.write_file(FRONT, text)
            self._front = text

    def write_sweep(self, plans: Iterable[Plan]) -> None:
        """Write the plans of the gradient sweep.

        Raises:
            RunError: They cannot be written.
        """
        self.write_file(SWEEP, _sweep_text(plans))

    def had_sweep(self, plans: Iterable[Plan]) -> bool | None:
        """Whether the run's sweep had these plans; None if nothing is known of it.

        Raises:
            RunError: The manifest is damaged.
        """
        known = self.known()
        mark = known.files.get(SWEEP) if known else None
        return None if mark is None else digest_of(_sweep_text(plans)) == mark.sha256

    def read_sweep(self) -> tuple[Plan, ...] | None:
        """The plans of the gradient sweep, none if it failed; None if there is no such file.

        Raises:
            RunError: The file is damaged.
        """
        data = self.read_file(SWEEP)
        if data is None:
            return None
        rows = self.parsed(SWEEP, data)
        if not isinstance(rows, list):
            raise self.damaged(SWEEP, "it does not hold a list of plans")
        try:
            return tuple(map(Plan.from_dict, rows))
        except RunError as error:
            raise self.damaged(SWEEP, error.message) from error

    def write_fit(self, digest: str, content: bytes) -> None:
        """Write the vectors of a fit.

        Raises:
            RunError: They cannot be written.
        """
        self.write_file(fit_file(digest), content)

    def read_fits(self) -> dict[str, bytes]:
        """The content of the files of the run's fits, by digest.

        Raises:
            RunError: One is damaged or missing.
        """
        known = self.known()
        found = {}
        for name in sorted({*self._present(), *(known.files if known else ())}):
            match = _FIT.fullmatch(name)
            if match is None:
                continue
            content = self.read_file(name)
            if content is None:
                raise self.damaged(name, "it is gone")
            found[match[1]] = content
        return found

    # --- life cycle ------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Exclude other processes from the run; may be nested within one `RunFolder`.

        The operating system releases the lock when the process ends, even after a kill.

        Raises:
            RunError: Another process holds the lock, or its file cannot be written.
        """
        if not self._lock.is_held:
            self.make()
        with self._lock.held():
            yield

    @property
    def is_locked(self) -> bool:
        """Whether any process, including this one, is working on the run."""
        return self._lock.is_held or is_locked(self.path)

    def discard(self) -> None:
        """Delete the run's own files, except its log, its events and results of benchmarks.

        Raises:
            RunError: Another process holds the lock, or a file cannot be deleted.
        """
        if not self.path.is_dir():
            return
        with self.lock():
            self._journal = self._front = None
            marker = self.path / DISCARDED
            try:
                # From here on there is no run, also after a kill.
                if self.exists:
                    self.manifest_path.replace(marker)
                fits = [path.name for path in (self.path / FITS).glob("*.safetensors")]
                own = [JOURNAL, FRONT, SWEEP, REPORT, DIRECTIONS, BASELINE, _TRACKING]
                for name in [*own, *(f"{FITS}/{fit}" for fit in fits), DISCARDED]:
                    (self.path / name).unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(self.path, error, GOES_ON) from error
            self.tidy()
            with suppress(OSError):  # it is not there, or holds something else
                (self.path / FITS).rmdir()

    def tidy(self) -> None:
        """Delete temporary files that a killed process left behind; needs the lock."""
        for folder in (self.path, self.path / BENCHMARKS, self.path / FITS):
            for path in folder.glob(".*.tmp"):
                with suppress(OSError):
                    path.unlink()


def known_run(path: Path) -> tuple[RunFolder, RunManifest]:
    """A run folder and its manifest.

    Raises:
        RunError: The folder holds no run, or a damaged one.
    """
    folder = RunFolder(path)
    return folder, folder.require_manifest()


def _directions_content(directions: NDArray[np.float32]) -> bytes:
    import numpy as np
    from safetensors.numpy import save

    return save({_TENSOR: np.ascontiguousarray(directions, dtype=np.float32)})


def _sweep_text(plans: Iterable[Plan]) -> str:
    return to_json([plan.to_dict() for plan in plans])
