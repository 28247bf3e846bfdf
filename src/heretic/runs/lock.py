"""The lock of a run folder: one process at a time works on a run.

The folder itself is locked, where the system can do that, and a file in it. The file is what
earlier releases and Windows look at; but a file can be deleted while the search goes on, and the
next process would lock a new one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING

from heretic.errors import RunError
from heretic.system.files import cannot_write, refuse_link

if TYPE_CHECKING:
    from filelock import BaseFileLock

if sys.platform != "win32":  # where a locked file cannot be deleted
    import fcntl

_PATIENCE = 0.5  # seconds; `heretic runs` takes a free lock for a moment
_PAUSE = 0.05
_LOCK = "run.lock"


class RunLock:
    """Excludes other processes from a run folder, which must exist; may be nested.

    The operating system releases the lock when the process ends, even after a kill.

    Args:
        remedy: What to do if the lock's file cannot be written.
        what: What is locked, for errors.
    """

    def __init__(self, folder: Path, remedy: str, what: str = "the run") -> None:
        self._folder = folder
        self._remedy = remedy
        self._what = what
        self._file: BaseFileLock | None = None
        self._descriptor: int | None = None
        self._depth = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock while the context lasts.

        Raises:
            RunError: Another process holds it, or its file cannot be written.
        """
        if self._depth == 0:
            self._take()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._let_go()

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._depth > 0

    def check(self) -> None:
        """Raise if the locked folder is no longer the one at its path.

        Raises:
            RunError: It was moved or deleted; another process may have made a new one.
        """
        if self._descriptor is None:
            return
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), self._folder.stat()):
                return
        raise RunError(
            f"The run folder {self._folder} was moved or deleted during the work on it.",
            remedy="Put it back, then start the same command again.",
        )

    def _take(self) -> None:
        from filelock import FileLock, Timeout

        path = self._folder / _LOCK
        refuse_link(path)
        # Not thread-local: a search may run in another thread than the one that opened the run.
        file = FileLock(str(path), thread_local=False)
        try:
            file.acquire(timeout=_PATIENCE)
        except Timeout as error:
            raise self._taken() from error
        except OSError as error:
            raise cannot_write(path, error, self._remedy) from error
        try:
            self._descriptor = _lock_folder(self._folder, _PATIENCE)
        except BlockingIOError as error:
            file.release()
            raise self._taken() from error
        self._file = file

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)  # which unlocks the folder
            self._descriptor = None
        if self._file is not None:
            self._file.release()
            self._file = None

    def _taken(self) -> RunError:
        return RunError(
            f"Another process is working on {self._what} in {self._folder}.",
            remedy="Wait until it is done, or stop it.",
        )


def is_locked(folder: Path) -> bool:
    """Whether any process, including this one, works on the run in a folder."""
    from filelock import FileLock, Timeout

    try:
        descriptor = _lock_folder(folder, 0)
    except BlockingIOError:
        return True
    if descriptor is not None:
        os.close(descriptor)
    path = folder / _LOCK
    if not path.is_file() or path.is_symlink():
        return False
    probe = FileLock(str(path), thread_local=False)
    try:
        probe.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a search could not run in a folder that it cannot write to
        return False
    probe.release()
    return False


def _lock_folder(folder: Path, patience: float) -> int | None:
    """Lock a folder; the lock lasts until the descriptor is closed.

    Returns:
        Its descriptor; None where folders cannot be locked.

    Raises:
        BlockingIOError: Another process has locked it, still after `patience` seconds.
    """
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    end = monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if monotonic() >= end:
                os.close(descriptor)
                raise
            sleep(_PAUSE)
        except OSError:  # some network file systems lock files only
            os.close(descriptor)
            return None
        else:
            return descriptor
