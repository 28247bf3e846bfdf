"""Run folders: the files of a run. A kill at any moment loses at most the trials in progress.

| file | holds |
| --- | --- |
| `manifest.json` | what the run is (`RunManifest`) |
| `directions.safetensors` | float32 [layers + 1, (k,) hidden]; any trial can be made from them |
| `sweep.json` | plans of the gradient sweep, if the search makes one |
| `baseline.safetensors` | the unedited model's outputs, for use when the run is resumed |
| `trials.journal` | Optuna's journal, which also holds each trial as a self-contained record |
| `front.json` | the front after the last trial |
| `heretic.log`, `run.lock` | the log; the lock that excludes other processes |
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.errors import RunError
from heretic.records.plan import Plan
from heretic.records.trial import Trial, front
from heretic.runs.journal import read_trials
from heretic.runs.manifest import RunManifest
from heretic.system.files import cannot_write, write_atomic
from heretic.system.hub import is_local

if TYPE_CHECKING:
    import numpy as np
    from filelock import BaseFileLock
    from numpy.typing import NDArray

__all__ = ["RunFolder", "digest", "slug", "write_atomic"]

DIGEST_LENGTH = 12
_LOCK_TIMEOUT = 0.5  # seconds; `list_runs` takes a free lock for a moment
_MANIFEST = "manifest.json"
_DIRECTIONS = "directions.safetensors"
_BASELINE = "baseline.safetensors"
_FRONT = "front.json"
_SWEEP = "sweep.json"
_JOURNAL = "trials.journal"
_LOG = "heretic.log"
_LOCK = "run.lock"
_TENSOR = "directions"
GOES_ON = "Check free space and permissions; the run then continues after its last trial."
_RESTART = "Start the run over (checkpoint_action = restart), or remove the folder."


def digest(fingerprint: Mapping[str, Any]) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a JSON-ready mapping, in any key order."""
    text = json.dumps(fingerprint, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_LENGTH]


def slug(model: str) -> str:
    """A model's name as part of a folder's name: readable, but not unique as the digest is.

    `org/name` becomes `org--name`; a path becomes its last part.
    """
    local = is_local(model)
    name = Path(model).expanduser().resolve().name if local else model.replace("/", "--")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:80] or "model"


class RunFolder:
    """One run on disk. Reading needs no lock; writing needs `lock()`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: BaseFileLock | None = None

    @classmethod
    def open(cls, checkpoint_dir: Path, model: str, digest: str) -> RunFolder:
        """The folder of a run, which need not exist; nothing is written.

        The digest alone identifies the run, so a run whose model folder was renamed is found too.
        """
        path = checkpoint_dir / f"{slug(model)}-{digest}"
        others = sorted(checkpoint_dir.glob(f"*-{digest}")) if not path.exists() else []
        return next((found for found in map(cls, others) if found.exists), cls(path))

    @staticmethod
    def _write(path: Path, content: str | bytes) -> None:
        write_atomic(path, content, remedy=GOES_ON)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error, GOES_ON) from error

    @property
    def exists(self) -> bool:
        """Whether a run has begun here: its manifest, which is written last, exists."""
        return (self.path / _MANIFEST).is_file()

    @property
    def digest(self) -> str:
        """The run's digest, from the folder's name."""
        return self.path.name.rpartition("-")[2]

    @property
    def has_directions(self) -> bool:
        """Whether the directions have been saved."""
        return (self.path / _DIRECTIONS).is_file()

    @property
    def manifest_path(self) -> Path:
        """The file that says what the run is."""
        return self.path / _MANIFEST

    @property
    def journal_path(self) -> Path:
        """The journal with the search's trials."""
        return self.path / _JOURNAL

    @property
    def baseline_path(self) -> Path:
        """The file with the unedited model's outputs."""
        return self.path / _BASELINE

    @property
    def front_path(self) -> Path:
        """The file with the front."""
        return self.path / _FRONT

    @property
    def sweep_path(self) -> Path:
        """The file with the plans of the gradient sweep."""
        return self.path / _SWEEP

    @property
    def log_path(self) -> Path:
        """The file with the log."""
        return self.path / _LOG

    # --- manifest and directions -----------------------------------------------------------

    def write_manifest(self, manifest: RunManifest) -> None:
        """Write the manifest.

        Raises:
            RunError: It cannot be written.
        """
        self._make()
        self._write(self.path / _MANIFEST, _json(manifest.to_dict()))

    def read_manifest(self) -> RunManifest | None:
        """Read the manifest; None if no run has begun here.

        Raises:
            RunError: It is damaged, or was written by a newer release.
        """
        if not self.exists:
            return None
        data = self._read_json(_MANIFEST)
        if not isinstance(data, Mapping):
            raise self._damaged(_MANIFEST, "it does not hold a JSON object")
        return RunManifest.from_dict(data)

    def require_manifest(self) -> RunManifest:
        """Read the manifest of a run that must exist.

        Raises:
            RunError: No run has begun here; or see `read_manifest`.
        """
        manifest = self.read_manifest()
        if manifest is None:
            raise RunError(
                f"{self.path} is not a run folder.", remedy="`heretic runs` lists run folders."
            )
        return manifest

    def save_directions(self, directions: NDArray[np.float32]) -> None:
        """Save the directions, [layers + 1, hidden] or [layers + 1, k, hidden], as float32.

        Raises:
            RunError: They cannot be written.
        """
        import numpy as np
        from safetensors.numpy import save

        self._make()
        tensor = np.ascontiguousarray(directions, dtype=np.float32)
        self._write(self.path / _DIRECTIONS, save({_TENSOR: tensor}))

    def load_directions(self) -> NDArray[np.float32]:
        """Read the saved directions, float32 [layers + 1, hidden] or [layers + 1, k, hidden].

        Raises:
            RunError: They are missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensor: NDArray[np.float32] = load((self.path / _DIRECTIONS).read_bytes())[_TENSOR]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise self._damaged(_DIRECTIONS, str(error)) from error
        return tensor

    # --- trials ----------------------------------------------------------------------------

    def read_trials(self) -> list[Trial]:
        """Read all finished trials from the journal, in order; empty without a journal.

        Raises:
            RunError: The journal is damaged, or was written by a newer release.
        """
        return read_trials(self.journal_path)

    def write_front(self, trials: Iterable[Trial]) -> None:
        """Write the front of `trials`, replacing the file atomically.

        Raises:
            RunError: It cannot be written.
        """
        self._write(self.front_path, _json([trial.to_dict() for trial in front(trials)]))

    def write_sweep(self, plans: Iterable[Plan]) -> None:
        """Write the plans of the gradient sweep.

        Raises:
            RunError: They cannot be written.
        """
        self._write(self.sweep_path, _json([plan.to_dict() for plan in plans]))

    # --- life cycle ------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Exclude other processes from the run; may be nested within one `RunFolder`.

        The operating system releases the lock when the process ends, even after a kill.

        Raises:
            RunError: Another process holds the lock, or its file cannot be written.
        """
        from filelock import Timeout

        self._make()
        lock = self._file_lock()
        try:
            lock.acquire(timeout=_LOCK_TIMEOUT)
        except Timeout as error:
            raise RunError(
                f"Another process is working on the run in {self.path}.",
                remedy="Wait until it is done, or stop it.",
            ) from error
        except OSError as error:
            raise cannot_write(self.path / _LOCK, error, GOES_ON) from error
        try:
            yield
        finally:
            lock.release()

    def _file_lock(self) -> BaseFileLock:
        from filelock import FileLock

        if self._lock is None:
            # Not thread-local: a search may run in another thread than the one that opened the run.
            self._lock = FileLock(str(self.path / _LOCK), thread_local=False)
        return self._lock

    @property
    def is_locked(self) -> bool:
        """Whether any process, including this one, is working on the run."""
        from filelock import FileLock, Timeout

        if not (self.path / _LOCK).exists():
            return False
        if self._lock is not None and self._lock.is_locked:
            return True
        probe = FileLock(str(self.path / _LOCK), thread_local=False)
        try:
            probe.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:  # a search could not run in a folder that it cannot write to
            return False
        probe.release()
        return False

    def discard(self) -> None:
        """Delete the run's own files, except its log.

        Raises:
            RunError: Another process holds the lock, or a file cannot be deleted.
        """
        if not self.path.is_dir():
            return
        with self.lock():
            # The manifest goes last, so that a kill in between leaves a valid run without trials.
            for name in (_JOURNAL, _FRONT, _SWEEP, _DIRECTIONS, _BASELINE, _MANIFEST):
                try:
                    (self.path / name).unlink(missing_ok=True)
                except OSError as error:
                    raise cannot_write(self.path / name, error, GOES_ON) from error
            self.tidy()

    def tidy(self) -> None:
        """Delete temporary files that a killed process left behind; needs the lock."""
        for path in self.path.glob(".*.tmp"):
            with suppress(OSError):
                path.unlink()

    def _read_json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(name, str(error)) from error

    def _damaged(self, name: str, reason: str) -> RunError:
        return RunError(f"Cannot read {self.path / name}: {reason}.", remedy=_RESTART)


def _json(data: object) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
