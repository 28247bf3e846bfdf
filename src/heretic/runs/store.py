"""Files of a run and the digests of them, which its manifest holds.

A file is replaced in two steps, each of them atomic: the manifest gets the new digest beside the
old one, then the file is renamed into its place. So after a kill its content has one of the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from heretic.errors import RunError
from heretic.records.plan import FITS
from heretic.runs.journal import Journal, scan
from heretic.runs.lock import RunLock
from heretic.runs.manifest import RESTART, SCHEMA_VERSION, FileMark, RunManifest
from heretic.system.documents import parse_json
from heretic.system.files import cannot_write, refuse_link, refuse_odd, write_atomic

MANIFEST = "manifest.json"
DISCARDED = "manifest.discarded"
DIRECTIONS = "directions.safetensors"
BASELINE = "baseline.safetensors"
FRONT = "front.json"
SWEEP = "sweep.json"
REPORT = "report.json"
JOURNAL = "trials.journal"
BENCHMARKS = "benchmarks"

MOST_BYTES = 4 * 2**30
"""Size of the largest file that is read."""

GOES_ON = "Check free space and permissions; the run then continues after its last trial."


class RunFiles:
    """The manifest of a run, and files that are checked by it. Writing needs the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = RunLock(path, GOES_ON)
        self._journal: Journal | None = None

    @property
    def manifest_path(self) -> Path:
        """The file that says what the run is."""
        return self.path / MANIFEST

    @property
    def journal_path(self) -> Path:
        """The journal with the search's trials."""
        return self.path / JOURNAL

    def make(self) -> None:
        """Make the folder, unless it was locked and is gone.

        Raises:
            RunError: It cannot be made.
        """
        self._lock.check()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error, GOES_ON) from error

    @property
    def exists(self) -> bool:
        """Whether a run has begun here: its manifest, which is written last, exists."""
        return (self.path / MANIFEST).is_file()

    # --- manifest --------------------------------------------------------------------------

    def write_manifest(self, manifest: RunManifest) -> RunManifest:
        """Write the manifest, with digests of the run's files; returns it with these.

        Raises:
            RunError: It cannot be written, or the one that is there is damaged.
        """
        self.make()
        known = self.known()
        if known is not None and known.has_checksums:
            files, journal = self._settled(known.files), known.journal
        else:  # a new run, or one of an earlier release: its files are taken as they are
            present = {name: self._sha256(name) for name in self._present()}
            files = {name: FileMark(found) for name, found in present.items() if found}
            whole = scan(self.journal_path)
            journal = whole.mark if whole.length else None
        return self.put(replace(manifest, files=files, journal=journal))

    def put(self, manifest: RunManifest) -> RunManifest:
        """Write a manifest whose digests are settled; returns it as written.

        Raises:
            RunError: It cannot be written.
        """
        if self._journal is not None:
            self._journal.sync()
            manifest = replace(manifest, journal=self._journal.mark)
        manifest = replace(manifest, schema_version=SCHEMA_VERSION)
        self._lock.check()
        write_atomic(self.manifest_path, to_json(manifest.to_dict()), remedy=GOES_ON)
        return manifest

    def read_manifest(self) -> RunManifest | None:
        """Read the manifest; None if no run has begun here.

        Raises:
            RunError: It is damaged or gone, or was written by a newer release.
        """
        known = self.known()
        discarded = (self.path / DISCARDED).exists()
        if known is None and not discarded and (_read(self.journal_path) or b"").strip():
            # The journal is begun after the manifest.
            raise self.damaged(MANIFEST, "it is gone, though the run has trials")
        return known

    def require_manifest(self) -> RunManifest:
        """Read the manifest of a run that must exist.

        Raises:
            RunError: No run has begun here; or see `read_manifest`.
        """
        manifest = self.read_manifest() if self.path.is_dir() else None
        if manifest is None:
            raise RunError(
                f"{self.path} is not a run folder.", remedy="`heretic runs` lists run folders."
            )
        return manifest

    def known(self) -> RunManifest | None:
        """The manifest; None without one.

        Raises:
            RunError: It is damaged, or was written by a newer release.
        """
        if not self.exists:
            return None
        data = self.parsed(MANIFEST, _read(self.manifest_path))
        if not isinstance(data, Mapping):
            raise self.damaged(MANIFEST, "it does not hold a JSON object")
        try:
            return RunManifest.from_dict(data)
        except RunError as error:
            raise RunError(f"{self.manifest_path}: {error.message}", remedy=error.remedy) from error

    # --- files with digests ----------------------------------------------------------------

    def write_file(self, name: str, content: str | bytes) -> None:
        """Replace a file of the run, whose new digest the manifest gets first.

        Args:
            name: The file's path below the folder.

        Raises:
            RunError: It cannot be written.
        """
        data = content.encode() if isinstance(content, str) else content
        self.make()
        self._make_parent(name)
        known = self.known()
        if known is not None and not known.has_checksums:
            known = self.write_manifest(known)
        if known is not None:
            files = self._settled(known.files)
            new, old = digest_of(data), files[name].sha256 if name in files else ""
            files[name] = FileMark(new, None if old == new else old)
            if files != known.files:
                self.put(replace(known, files=files))
        self._lock.check()
        write_atomic(self.path / name, data, remedy=GOES_ON)

    def _make_parent(self, name: str) -> None:
        for parent in list((self.path / name).parents):
            if parent == self.path:
                return
            refuse_link(parent)
            try:
                parent.mkdir(exist_ok=True)
            except OSError as error:
                raise cannot_write(parent, error, GOES_ON) from error

    def read_file(self, name: str) -> bytes | None:
        """The content of a file of the run; None if there is none.

        Args:
            name: The file's path below the folder.

        Raises:
            RunError: It cannot be read, or its content is not what the run wrote.
        """
        for again in (True, True, False):  # a search that goes on may replace it in between
            data = _read(self.path / name)
            if data is None or self._is_as_written(name, data):
                return data
            if not again:
                break
        raise self.damaged(name, "its content is not what the run wrote (checksum)")

    def check_recorded(self, name: str) -> None:
        """Check a file if the run has written it.

        Raises:
            RunError: It has, and the content is another one.
        """
        known = self.known()
        if known is not None and name in known.files:
            self.read_file(name)

    def _is_as_written(self, name: str, data: bytes) -> bool:
        known = self.known()
        if known is None or not known.has_checksums:
            return True
        mark = known.files.get(name)
        return mark is not None and digest_of(data) in (mark.sha256, mark.before)

    def lacks(self, name: str) -> bool:
        """Whether a file that the run had written is gone.

        Raises:
            RunError: The manifest is damaged.
        """
        known = self.known()
        mark = known.files.get(name) if known else None
        return mark is not None and mark.before != "" and not (self.path / name).is_file()

    def _settled(self, files: Mapping[str, FileMark]) -> dict[str, FileMark]:
        """The marks, where replaced files are known to be replaced, or known not to be."""
        settled = {}
        for name, mark in files.items():
            found = self._sha256(name) if mark.before is not None else None
            if mark.before is None or found not in (mark.sha256, mark.before):
                settled[name] = mark
            elif found:
                settled[name] = FileMark(found)
        return settled

    def _present(self) -> list[str]:
        found = [
            *(self.path / BENCHMARKS).glob("*.json"),
            *(self.path / FITS).glob("*.safetensors"),
        ]
        more = sorted(path.relative_to(self.path).as_posix() for path in found)
        return [DIRECTIONS, BASELINE, SWEEP, REPORT, FRONT, *more]

    def _sha256(self, name: str) -> str:
        """Digest of a file; empty without one."""
        data = _read(self.path / name)
        return "" if data is None else digest_of(data)

    def parsed(self, name: str, data: bytes | None) -> Any:
        """What the JSON of a file holds.

        Raises:
            RunError: It is not JSON.
        """
        try:
            return parse_json(data or b"", strict=False)
        except ValueError as error:
            raise self.damaged(name, str(error)) from error

    def damaged(self, name: str, reason: str) -> RunError:
        """The error for a file that cannot be used."""
        return RunError(f"Cannot read {self.path / name}: {reason}.", remedy=RESTART)


def _read(path: Path) -> bytes | None:
    """A file's content; None if there is no regular file.

    Raises:
        RunError: It cannot be read, or is far too large.
    """
    try:
        refuse_odd(path)
        if path.stat().st_size > MOST_BYTES:
            raise RunError(f"{path} is larger than {MOST_BYTES // 2**30} GiB.", remedy=RESTART)
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{path} cannot be read: {reason}.", remedy="Check permissions.") from error


def digest_of(data: str | bytes) -> str:
    """SHA-256 of a file's content."""
    data = data.encode() if isinstance(data, str) else data
    return hashlib.sha256(data).hexdigest()


def to_json(data: object) -> str:
    """Readable JSON that any UTF-8 file can hold."""
    # Paths of other encodings hold half characters, which no UTF-8 file can.
    for ascii_only in (False, True):
        text = json.dumps(data, indent=2, ensure_ascii=ascii_only, allow_nan=False) + "\n"
        with suppress(UnicodeEncodeError):
            text.encode()
            break
    return text
