"""Files on disk: free space, a check of the destination, hashes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heretic.errors import ExportError
from heretic.export.staging import contents, prove, recover, resolved
from heretic.system import documents
from heretic.system.display import bytes_text
from heretic.system.files import expanded, free_bytes, write_atomic

PARAMETERS = "abliteration_params.json"
REPRODUCTION = "reproduce.json"
CARD = "README.md"
SUMS = "SHA256SUMS"
DOCUMENTS = frozenset({PARAMETERS, REPRODUCTION, CARD, SUMS})
"""Files about the other files: written last, and written again after verification."""

_HALF_WRITTEN = re.compile(rf"\.({'|'.join(map(re.escape, sorted(DOCUMENTS)))})\.\w+\.tmp")
"""Temporary files of `write_atomic` for documents."""

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
    """All files below `folder`, as sorted posix paths relative to it.

    What a killed process left while it saved there, or wrote a document again, is left out.
    """
    return sorted(
        path.relative_to(folder).as_posix()
        for top in contents(folder)
        if not _HALF_WRITTEN.fullmatch(top.name)
        for path in (top, *top.rglob("*"))
        if not path.is_dir()
    )


def inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a saved model except the documents about it."""
    return {
        name: {"sha256": sha256_file(folder / name), "size": (folder / name).stat().st_size}
        for name in relative_files(folder)
        if name not in DOCUMENTS
    }


def sums_text(digests: Mapping[str, str]) -> str:
    """Hex digests by file name, in the format that `sha256sum --check` reads."""
    lines = []
    for name, digest in sorted(digests.items()):
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
        mark = "" if escaped == name else "\\"
        lines.append(f"{mark}{digest}  {escaped}\n")
    return "".join(lines)


def write_sums(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the digests of all files of an export.

    Args:
        files: What `inventory` returned for the folder.

    Raises:
        ExportError: The file cannot be written.
    """
    documents = [name for name in (PARAMETERS, REPRODUCTION, CARD) if (folder / name).is_file()]
    digests = {name: str(entry["sha256"]) for name, entry in files.items()}
    digests |= {name: sha256_file(folder / name) for name in documents}
    write_text(folder / SUMS, sums_text(digests))


def sweep_half_written(folder: Path) -> None:
    """Delete what a killed process left while it wrote a document again."""
    for path in folder.iterdir():
        if _HALF_WRITTEN.fullmatch(path.name):
            path.unlink(missing_ok=True)


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
    """Parse a JSON file that Heretic wrote.

    Raises:
        ExportError: The file is missing or is not JSON.
    """
    text = documents.read_text(path, kind=ExportError)
    try:
        return documents.parse_json(text, strict=False)
    except ValueError as error:
        raise ExportError(f"{path} cannot be read as JSON: {error}.") from error


LESS_ROOM = (
    "Free some space, choose another folder (for an upload: TMPDIR), or export an adapter "
    "(--export-strategy adapter), which takes a few megabytes."
)


def check_disk(destination: Path, needed: int, remedy: str = LESS_ROOM) -> None:
    """Refuse to write what will not fit on the disk.

    Args:
        needed: Bytes of weights; a margin for the other files is added.
        remedy: What else can be done where there is no room.

    Raises:
        ExportError: The disk of `destination` has less free space.
    """
    free = free_bytes(resolved(destination))
    if free < needed + DISK_MARGIN:
        raise ExportError(
            f"Saving to {destination} needs about {bytes_text(needed + DISK_MARGIN)}, and "
            f"only {bytes_text(free)} are free there.",
            remedy=remedy,
        )


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a model saved by Heretic and nothing else."""
    try:
        listed = set(read_json(folder / REPRODUCTION)["files"])
    except (ExportError, KeyError, TypeError):
        return False
    present = set(relative_files(folder))
    return PARAMETERS in present and present <= listed | DOCUMENTS


def check_destination(destination: Path, base_model: str) -> Path:
    """Refuse a place where saving would destroy something, or is not possible.

    An earlier export may be replaced. The base model, other files, and a folder that holds more
    than an export may not. What a killed process left there is finished or undone first.

    Returns:
        The folder, absolute, with `~` and links followed.

    Raises:
        ExportError: The destination is in use, is not a folder, or cannot be written to.
    """
    destination = resolved(destination)
    recover(destination)
    try:
        exists, is_folder = destination.exists(), destination.is_dir()
        taken = is_folder and bool(contents(destination)) and not is_ours(destination)
    except OSError as error:
        raise ExportError(
            f"{destination} cannot be looked into: {error.strerror or error}.",
            remedy="Choose another folder.",
        ) from error
    if exists and not is_folder:
        raise ExportError(f"{destination} is a file.", remedy="Name a folder.")
    base = expanded(base_model)
    if base_model and base.exists() and base.resolve() == destination:
        raise ExportError(
            f"{destination} is the base model itself.", remedy="Choose another folder."
        )
    if taken:
        raise ExportError(
            f"{destination} is not empty and holds files that Heretic did not save there.",
            remedy="Choose another folder, or empty this one.",
        )
    prove(destination)
    return destination
