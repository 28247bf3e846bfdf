"""Files that are replaced as a whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from heretic.errors import RunError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole: readers, and a kill at any moment, see the old one or the new.

    Raises:
        RunError: It cannot be written (no space, no permission).
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
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error for a file of a run that cannot be written."""
    reason = error.strerror or str(error)
    return RunError(
        f"Cannot write {path}: {reason}.",
        remedy="Check free space and permissions; the run goes on from its last trial.",
    )


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the platform lets folders be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
