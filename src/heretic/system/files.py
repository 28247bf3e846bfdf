"""Write files atomically."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from heretic.errors import HereticError, RunError

REMEDY = "Check free space and permissions."

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def expanded(path: str | Path) -> Path:
    """A path with `~` as the home folder; as it is where no home is known, so that it is missed."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of pathlib raises RuntimeError


def user_cache() -> Path:
    """The user's folder for caches: `$XDG_CACHE_HOME`, or `~/.cache`.

    Raises:
        HereticError: Neither is known.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    folder = Path(named) if named else expanded("~/.cache")
    if not named and not folder.is_absolute():
        raise HereticError(
            "There is no home folder to keep files in.", remedy="Set HOME or XDG_CACHE_HOME."
        )
    return folder


def write_atomic(
    path: Path,
    content: str | bytes,
    *,
    parents: bool = False,
    remedy: str = REMEDY,
    kind: type[HereticError] = RunError,
) -> None:
    """Replace a file atomically: readers see the old content or the new, even after a kill.

    Args:
        parents: Whether the file's folder is made if it is not there.
        remedy: What the user can do if the file cannot be written.
        kind: Class of the error raised in that case.

    Raises:
        HereticError: An error of class `kind`: the file cannot be written (no space, no
            permission).
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    # The name cannot be foreseen, so that nobody can have put a link there.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        with suppress(OSError):  # the file is there; only the rename may not outlive a crash
            sync_one(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error, remedy, kind) from error
        raise


def open_own(path: Path, flags: int) -> int:
    """Open a file to change it in place, never one that lies elsewhere or that others share.

    A link is refused. A file with a second name, such as a copy made of hard links, is replaced by
    a copy first.

    Args:
        flags: As for `os.open`.

    Returns:
        The file's descriptor.

    Raises:
        RunError: It is a link, or not a regular file.
        OSError: It cannot be opened.
    """
    refuse_link(path)
    with suppress(FileNotFoundError):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise RunError(f"{path} is not a regular file.", remedy="Remove it.")
        if found.st_nlink > 1:
            write_atomic(path, path.read_bytes())
    return os.open(path, flags | _NO_LINKS, 0o666)


def refuse_link(path: Path) -> None:
    """Raise if a path is a link: what is written there would land elsewhere.

    Raises:
        RunError: It is one.
    """
    if path.is_symlink():
        raise RunError(
            f"{path} is a link. What is written into a run folder may not leave it.",
            remedy="Put the file itself in its place, or remove the link.",
        )


def refuse_odd(path: Path) -> None:
    """Raise if a path is there, but no file: a pipe would be waited for without end.

    What is taken for missing is written anew, or leaves its run without it.

    Raises:
        RunError: It is a folder, a pipe, a device, or a link that leads nowhere.
    """
    if os.path.lexists(path) and not os.path.isfile(path):  # noqa: PTH113 - raises nothing
        raise RunError(
            f"{path} is not a regular file.", remedy="Restore it from a copy, or remove it."
        )


def cannot_write(
    path: Path, error: OSError, remedy: str = REMEDY, kind: type[HereticError] = RunError
) -> HereticError:
    """The error for a file that cannot be written."""
    return kind(f"Cannot write {path}: {error.strerror or error}.", remedy=remedy)


def existing_parent(path: Path) -> Path:
    """The folder that a path means if it exists, otherwise its nearest parent that does."""
    path = expanded(path).absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def free_bytes(path: Path) -> int:
    """Bytes that are free on the disk of a path, which need not exist yet."""
    return shutil.disk_usage(existing_parent(path)).free


def check_writable(folder: Path) -> None:
    """Say early that nothing can be written in a folder, which need not exist yet.

    Raises:
        RunError: It or a parent of it is a file, or may not be written to.
    """
    place = existing_parent(folder)
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return
    code = errno.EACCES if place.is_dir() else errno.ENOTDIR
    raise cannot_write(folder, OSError(code, os.strerror(code)))


def sync_one(path: Path) -> None:
    """Bring a file, or the list of a folder's entries, onto the disk.

    Raises:
        OSError: The disk refuses.
    """
    flags = os.O_RDONLY if os.name == "posix" else os.O_RDWR
    try:
        descriptor = os.open(path, flags)
    except OSError:
        if path.is_dir():  # some systems open no folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
