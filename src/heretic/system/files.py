"""Write files atomically."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from heretic.errors import HereticError, RunError

REMEDY = "Check free space and permissions."


def write_atomic(
    path: Path,
    content: str | bytes,
    *,
    remedy: str = REMEDY,
    kind: type[HereticError] = RunError,
) -> None:
    """Replace a file atomically: readers see the old content or the new, even after a kill.

    Args:
        remedy: What the user can do if the file cannot be written.
        kind: Class of the error raised in that case.

    Raises:
        HereticError: An error of class `kind`: the file cannot be written (no space, no
            permission).
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error, remedy, kind) from error


def cannot_write(
    path: Path, error: OSError, remedy: str = REMEDY, kind: type[HereticError] = RunError
) -> HereticError:
    """The error for a file that cannot be written."""
    return kind(f"Cannot write {path}: {error.strerror or error}.", remedy=remedy)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the platform lets folders be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
