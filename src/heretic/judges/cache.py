"""Verdicts on disk: one SQLite file, shared by processes and replaced if it is damaged."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from heretic.errors import ScorerError

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_TABLE = "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)"
_WAIT = 60.0
"""Seconds to wait while another process writes."""


class VerdictCache:
    """Stores texts by key in `verdicts.sqlite3`.

    Every call opens the file, so threads and forked processes may share an object. A damaged file
    is renamed, with a warning, and a new one is created.

    Args:
        folder: Folder of the file; created when needed.

    Raises:
        ScorerError: From every method: the file cannot be read or written (no space, no
            permission).
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "verdicts.sqlite3"

    def get(self, keys: Iterable[str]) -> dict[str, str]:
        """The stored texts of these keys; keys without a text are left out."""

        def read(connection: sqlite3.Connection) -> dict[str, str]:
            find = "SELECT verdict FROM verdicts WHERE key = ?"
            rows = {key: connection.execute(find, (key,)).fetchone() for key in keys}
            return {key: str(row[0]) for key, row in rows.items() if row is not None}

        keys = list(keys)
        return self._with_file(read)

    def put(self, key: str, text: str) -> None:
        """Store a text durably; an earlier text of the same key is kept instead."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", (key, text))

        self._with_file(write)

    def _with_file(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            # Reasons may quote replies, so other users of the machine must not read the file.
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                return self._once(work)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._put_aside()
                return self._once(work)
        except (sqlite3.Error, OSError) as error:
            raise ScorerError(
                f"The cache of verdicts {self.path} cannot be used: {error}.",
                remedy="Check free space and permissions, or set cache_folder.",
            ) from error

    def _once(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        with closing(sqlite3.connect(self.path, timeout=_WAIT)) as connection:
            connection.execute(_TABLE)
            with connection:
                return work(connection)

    def _put_aside(self) -> None:
        with FileLock(f"{self.path}.lock"):
            if not self._is_damaged():
                return  # another process has created a new file
            aside = self.path.with_name(f"verdicts.damaged-{time.time_ns()}.sqlite3")
            self.path.replace(aside)
            # SQLite would replay an old rollback journal into the new file.
            Path(f"{self.path}-journal").unlink(missing_ok=True)
            _log.warning("The cache of verdicts was damaged; it was renamed to %s", aside)

    def _is_damaged(self) -> bool:
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT)) as connection:
                return bool(connection.execute("PRAGMA quick_check").fetchone()[0] != "ok")
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            return True


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)  # errors raised by Python itself have none
    return code is not None and (code & 0xFF) in _DAMAGED
