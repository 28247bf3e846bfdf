"""All-or-nothing saving: files appear at their destination all at once, whatever ends the process.

A hidden work folder beside the destination holds what is being saved (`new`) and, while it is
exchanged, what was there before (`old`). It lies inside the destination where that folder cannot be
renamed: a mount point, the working directory, a folder in a place that may not be written to. Then
the contents are exchanged: those from before go to `old`, which is renamed to `replaced` once all
are in it, and the new ones follow. So a work folder tells how far a process came that was killed,
and `recover` finishes or undoes it. A lock tells the dead from the living.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from heretic.errors import ExportError
from heretic.system.files import sync_one

if TYPE_CHECKING:
    from filelock import BaseFileLock

NEW, OLD, REPLACED, LOCK = "new", "old", "replaced", "lock"

NOT_RENAMED = {errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL}
"""Error numbers of a folder that cannot be renamed, while its contents perhaps can."""

LABEL = 100
"""Most characters of the destination's name in the name of its work folder."""

_EXCHANGE, _HERE = 2, -100
"""RENAME_EXCHANGE and AT_FDCWD of Linux."""

ALWAYS_THERE = frozenset({"lost+found"})
"""Folders that a file system keeps at its root."""


def resolved(destination: Path) -> Path:
    """The folder that a destination means: absolute, with `~` and links followed.

    Raises:
        ExportError: It is no path, or names the home of a user that does not exist.
    """
    try:
        return destination.expanduser().resolve()  # refuses an unknown home, unlike `expanded`
    except (OSError, RuntimeError, ValueError) as error:
        raise ExportError(
            f"{str(destination)!r} cannot be a folder: {error}.", remedy="Name another folder."
        ) from error


def contents(folder: Path) -> list[Path]:
    """What a folder holds, without work folders and what file systems keep at their root."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.name not in ALWAYS_THERE and not _pattern("").fullmatch(path.name)
    ]


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Yield a new folder; its files appear at `destination` if the block succeeds.

    If the block fails, `destination` stays as it was. If the process dies, `destination` is as
    before or as after, or becomes so by `recover`. All files reach the disk before they appear.

    Args:
        destination: As `resolved` returns it.

    Raises:
        ExportError: The folder cannot be created, or saving fails on an `OSError`.
    """
    recover(destination)
    failed = f"Saving to {destination} failed"
    with _reported(destination, failed), _work_folder(destination) as work:
        staging = work / NEW
        staging.mkdir()
        yield staging
        _usual_permissions(staging)
        sync(staging)
        _publish(work, destination)


def upload_place() -> Path:
    """Where an upload's copy is kept while it lasts: in the system's temporary folder (TMPDIR)."""
    return Path(tempfile.gettempdir()).resolve() / ".heretic-upload"


@contextmanager
def temporary() -> Iterator[Path]:
    """Yield the name of a folder to save in, which is deleted at the end.

    What processes left there that were killed is swept first, since it may be large.

    Raises:
        ExportError: There is no place for it.
    """
    place = upload_place()
    recover(place)
    with _reported(place, f"Nothing can be saved in {place.parent}"), _work_folder(place) as work:
        yield work / "model"


def keep(folder: Path) -> Path:
    """Move a folder that `temporary` named to a place where it stays; returns that place.

    Raises:
        OSError: It cannot be moved.
    """
    kept = Path(tempfile.mkdtemp(prefix="heretic-not-uploaded-")) / folder.name
    folder.rename(kept)
    return kept


def prove(destination: Path) -> None:
    """Find out by trying that a folder can be saved at `destination`; nothing is left there.

    Args:
        destination: As `resolved` returns it.

    Raises:
        ExportError: It cannot.
    """
    parents = [path for path in destination.parents if not path.exists()]
    try:
        cannot = f"Nothing can be saved in {destination}"
        with _reported(destination, cannot), _work_folder(destination) as work:
            # The system moves no folder that may not be written to, wherever its parent is.
            if destination.is_dir() and not os.access(destination, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            staging = work / NEW
            staging.mkdir()
            (staging / LOCK).write_bytes(b"x")
            sync(staging)
            (staging / LOCK).unlink()
            if not destination.exists():
                staging.rename(destination)
                destination.rename(staging)
    finally:
        for path in parents:
            with suppress(OSError):  # not empty: somebody else uses it
                path.rmdir()


def recover(destination: Path) -> None:
    """Finish or undo what processes left that were killed while they saved to `destination`."""
    for folder, label in ((destination.parent, destination.name), (destination, "")):
        try:
            found = [path for path in folder.iterdir() if _pattern(label).fullmatch(path.name)]
        except OSError:
            continue
        for work in filter(_is_own, found):
            lock = _lock_of(work)
            if lock is not None:
                try:
                    _settle(work, destination)
                finally:
                    lock.release()
    _recover_earlier(destination)


def sync(folder: Path) -> None:
    """Bring a folder with all that is in it onto the disk.

    Raises:
        OSError: The disk refuses, for example since it is full.
    """
    for path in (*folder.rglob("*"), folder):
        if path.is_dir() or path.is_file():
            sync_one(path)


# --- the work folder -----------------------------------------------------------------------


def _pattern(label: str) -> re.Pattern[str]:
    return re.compile(rf"\.{re.escape(label[:LABEL])}\.[0-9a-f]{{16}}\.heretic")


@contextmanager
def _work_folder(destination: Path) -> Iterator[Path]:
    """A locked work folder, deleted at the end."""
    work = _made(destination, inside=_must_stay(destination))
    lock = _lock_of(work)
    try:
        yield work
    finally:
        _settle(work, destination)
        if lock is not None:
            lock.release()


def _made(destination: Path, *, inside: bool) -> Path:
    token = f"{secrets.token_hex(8)}.heretic"
    if not inside:
        beside = destination.parent / f".{destination.name[:LABEL]}.{token}"
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            beside.mkdir()
        except OSError:
            if not destination.is_dir():
                raise
        else:
            return beside
    work = destination / f"..{token}"
    work.mkdir()
    return work


def _lock_of(work: Path) -> BaseFileLock | None:
    """The lock of a work folder, acquired; None if a living process holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(work / LOCK), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError):
        return None
    return lock


def _must_stay(destination: Path) -> bool:
    """Whether a folder exists and cannot be renamed, or should not be."""
    if not destination.is_dir():
        return False
    here = Path.cwd()
    return os.path.ismount(destination) or destination in (here, *here.parents, *_mount_points())


def _mount_points() -> list[Path]:
    """All mount points, where Linux lists them; `ismount` overlooks those of one file system."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return []
    escaped = [line.split()[4] for line in lines if len(line.split()) > 4]
    return [
        Path(os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), name)))
        for name in escaped
    ]


def _is_own(work: Path) -> bool:
    """Whether this user made a folder: in a shared place, others could offer one."""
    found = work.lstat()
    return not work.is_symlink() and (not hasattr(os, "getuid") or found.st_uid == os.getuid())


# --- exchanging ----------------------------------------------------------------------------


def _publish(work: Path, destination: Path) -> None:
    """Let what is in `new` take the place of `destination`.

    Raises:
        OSError: It cannot; `destination` is as before.
    """
    if work.parent == destination:
        _exchange_contents(work, destination)
    elif not destination.exists():
        (work / NEW).rename(destination)
    else:
        try:
            _exchange_folders(work, destination)
        except OSError as error:
            if error.errno not in NOT_RENAMED:
                raise
            inner = _made(destination, inside=True)
            lock = _lock_of(inner)
            try:
                shutil.move(work / NEW, inner / NEW)
                sync(inner / NEW)
                _exchange_contents(inner, destination)
            finally:
                _settle(inner, destination)
                if lock is not None:
                    lock.release()
    sync_one(destination)
    sync_one(destination.parent)


def _exchange_folders(work: Path, destination: Path) -> None:
    if _exchanged(work / NEW, destination):
        return
    destination.rename(work / OLD)
    try:
        (work / NEW).rename(destination)
    except OSError:
        (work / OLD).rename(destination)
        raise


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old library
        return False
    return bool(rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0)


def _exchange_contents(work: Path, destination: Path) -> None:
    (work / OLD).mkdir()
    for path in contents(destination):
        path.rename(work / OLD / path.name)
    sync_one(work / OLD)
    (work / OLD).rename(work / REPLACED)
    sync_one(work)
    _settle(work, destination)


def _settle(work: Path, destination: Path) -> None:
    """Finish the exchange that a work folder tells of, or undo it; then delete the work folder."""
    if work.parent == destination:
        if (work / OLD).exists():
            _move_all(work / OLD, destination)
        elif (work / REPLACED).exists():
            _move_all(work / NEW, destination)
    elif (work / OLD).exists() and not destination.exists():
        (work / OLD).rename(destination)
    shutil.rmtree(work, ignore_errors=True)


def _move_all(folder: Path, destination: Path) -> None:
    for path in sorted(folder.iterdir()):
        path.rename(destination / path.name)
    sync_one(destination)


def _recover_earlier(destination: Path) -> None:
    """The same for the folders of earlier releases, whose names hold a process's number."""
    import psutil

    pattern = re.compile(rf"\.{re.escape(destination.name)}\.(\d+)-\w+\.(tmp|old)")
    with suppress(OSError):
        for path in destination.parent.iterdir():
            match = pattern.fullmatch(path.name)
            alive = match is not None and psutil.pid_exists(int(match[1]))
            # This process makes none; its number may be that of a dead one, as in containers.
            if match is None or (alive and int(match[1]) != os.getpid()) or not _is_own(path):
                continue
            if match[2] == "old" and not destination.exists() and (path / "old").is_dir():
                (path / "old").rename(destination)
            shutil.rmtree(path, ignore_errors=True)


# --- the disk ------------------------------------------------------------------------------


def _usual_permissions(folder: Path) -> None:
    """Give all files and folders the permissions that the umask allows new ones.

    safetensors creates files that only their owner may open. Some file systems have none.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        with suppress(PermissionError, NotImplementedError):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


@contextmanager
def _reported(destination: Path, what: str) -> Iterator[None]:
    """Turn errors of the system into one line with a remedy."""
    try:
        yield
    except OSError as error:
        ancestor = next((path for path in destination.parents if path.exists()), destination)
        if not ancestor.is_dir():
            raise ExportError(
                f"Nothing can be saved in {destination}: {ancestor} is a file.",
                remedy="Choose another folder.",
            ) from error
        raise ExportError(
            f"{what}: {error.strerror or error}.",
            remedy="Check the free space and the permissions of that place, or choose another "
            "folder.",
        ) from error
