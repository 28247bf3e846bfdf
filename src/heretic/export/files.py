"""Files on disk: free space, a check of the destination, all-or-nothing saving, hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heretic.errors import ExportError
from heretic.system.files import write_atomic

PARAMETERS = "abliteration_params.json"
REPRODUCTION = "reproduce.json"
CARD = "README.md"
DOCUMENTS = frozenset({PARAMETERS, REPRODUCTION, CARD})
"""Files about the other files: written last, and written again after verification."""

DISK_MARGIN = 64 * 2**20
"""Bytes for tokenizer, configuration and documents, in addition to the weights."""


def is_weight_file(name: str) -> bool:
    """Whether a file of a saved model holds weights."""
    return name.endswith(".safetensors")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def relative_files(folder: Path) -> list[str]:
    """All files below `folder`, as sorted posix paths relative to it."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    )


def inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a saved model except the documents about it."""
    return {
        name: {"sha256": sha256_file(folder / name), "size": (folder / name).stat().st_size}
        for name in relative_files(folder)
        if name not in DOCUMENTS
    }


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the whole new one.

    Raises:
        ExportError: The file cannot be written.
    """
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically: a reader sees the old file or the whole new one.

    Raises:
        ExportError: The file cannot be written.
    """
    write_atomic(path, text, kind=ExportError)


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ExportError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read as JSON: {error}.") from error


def existing_parent(path: Path) -> Path:
    """The path itself if it exists, otherwise its nearest parent that does."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def check_disk(destination: Path, needed: int) -> None:
    """Refuse to write what will not fit on the disk.

    Args:
        needed: Bytes of weights; a margin for the other files is added.

    Raises:
        ExportError: The disk of `destination` has less free space.
    """
    free = shutil.disk_usage(existing_parent(destination)).free
    if free < needed + DISK_MARGIN:
        raise ExportError(
            f"Saving to {destination} needs about {_gigabytes(needed + DISK_MARGIN)}, and "
            f"only {_gigabytes(free)} are free there.",
            remedy="Free some space, choose another folder, or export an adapter "
            "(--export-strategy adapter), which takes a few megabytes.",
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a model saved by Heretic and nothing else."""
    try:
        listed = set(json.loads((folder / REPRODUCTION).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    present = set(relative_files(folder))
    return PARAMETERS in present and present <= listed | DOCUMENTS


def check_destination(destination: Path, base_model: str) -> None:
    """Refuse a place where saving would destroy something.

    An earlier export may be replaced. The base model, other files, and a folder that holds more
    than an export may not.

    Raises:
        ExportError: The destination is in use, or is not a folder.
    """
    if not destination.exists():
        return
    if not destination.is_dir():
        raise ExportError(f"{destination} is a file.", remedy="Name a folder.")
    base = Path(base_model).expanduser()
    if base_model and base.exists() and base.resolve() == destination.resolve():
        raise ExportError(
            f"{destination} is the base model itself.", remedy="Choose another folder."
        )
    if any(destination.iterdir()) and not is_ours(destination):
        raise ExportError(
            f"{destination} is not empty and holds files that Heretic did not save there.",
            remedy="Choose another folder, or empty this one.",
        )


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Yield a new folder beside `destination`; rename it to `destination` if the block succeeds.

    If the block fails or the process dies, `destination` stays as it was.

    Raises:
        ExportError: The folder cannot be created, or saving fails on an `OSError`.
    """
    destination = destination.absolute()
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _sweep(destination)
        staging = Path(
            tempfile.mkdtemp(prefix=_prefix(destination), suffix=".tmp", dir=destination.parent)
        )
    except OSError as error:
        raise ExportError(
            f"Nothing can be written to {destination.parent}: {error.strerror or error}.",
            remedy="Choose another folder.",
        ) from error
    try:
        yield staging
        _usual_permissions(staging)
        _replace_folder(staging, destination)
    except OSError as error:
        raise ExportError(
            f"Saving to {destination} failed: {error.strerror or error}.",
            remedy="Check the free space and the permissions of that disk.",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _prefix(destination: Path) -> str:
    """Prefix of the hidden folders beside a destination: its name and this process's id."""
    return f".{destination.name}.{os.getpid()}-"


def _sweep(destination: Path) -> None:
    """Delete the hidden folders that processes left when they were killed during `staged`.

    An earlier export that was moved aside is deleted only if `destination` exists.
    """
    import psutil

    pattern = re.compile(rf"\.{re.escape(destination.name)}\.(\d+)-\w+\.(tmp|old)")
    for path in destination.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None or psutil.pid_exists(int(match[1])):
            continue
        if match[2] == "tmp" or destination.exists():
            shutil.rmtree(path, ignore_errors=True)


def _usual_permissions(folder: Path) -> None:
    """Give all files and folders the permissions that the umask allows new ones.

    mkdtemp and safetensors create folders and files that only their owner may open.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _replace_folder(staging: Path, destination: Path) -> None:
    """Rename `staging` to `destination`; an old `destination` is deleted after that succeeded."""
    if not destination.exists():
        staging.rename(destination)
        return
    with tempfile.TemporaryDirectory(
        prefix=_prefix(destination), suffix=".old", dir=destination.parent
    ) as aside:
        old = Path(aside) / "old"
        destination.rename(old)
        try:
            staging.rename(destination)
        except OSError:
            old.rename(destination)
            raise
