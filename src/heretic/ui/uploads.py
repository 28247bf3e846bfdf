"""Prompt sets that a browser sends: checked, and kept beside the run folders; never executed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from heretic.config.tables import DatasetSpecification
from heretic.errors import PromptError, RunError
from heretic.prompts.files import read_file
from heretic.prompts.places import read_texts
from heretic.system.display import bytes_text, clip
from heretic.system.files import cannot_write, write_atomic

FOLDER = "uploaded-prompts"
"""Below the folder of the run folders. Runs name the files in it, so that none is deleted."""

FORMATS = (".txt", ".csv", ".tsv", ".json", ".jsonl")
"""Those of the loader that are text."""

MOST_BYTES = 4_000_000
SHOWN = 3
SHOWN_CHARACTERS = 500
"""Of a prompt: the whole of a file may stand in one line."""

USUAL = "text"
"""The column that is read unless another is named."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file of prompts that was kept.

    Attributes:
        name: As its sender calls it.
        columns: In the file's order.
        column: That of the prompts; None if it cannot be told which it is.
        count: Number of prompts, or of rows where the column is not known.
        first: The first prompts, shortened.
    """

    name: str
    path: Path
    columns: tuple[str, ...]
    column: str | None
    count: int
    first: tuple[str, ...]


def keep(runs: Path, name: str, content: bytes) -> Uploaded:
    """Check a file of prompts, and keep it in `runs/uploaded-prompts`, named by its content.

    Args:
        name: As its sender calls it; its ending tells the format.

    Raises:
        PromptError: The format is not known, the file is too large, damaged, or has no prompt.
        RunError: It cannot be written.
    """
    kind = Path(name).suffix.lower()
    if kind not in FORMATS:
        raise PromptError(
            f"{name} has no known format.", remedy=f"Upload one of {', '.join(FORMATS)}."
        )
    if len(content) > MOST_BYTES:
        raise PromptError(
            f"{name} is larger than {bytes_text(MOST_BYTES)}.",
            remedy="Put it into a folder that this page shows, and choose it by Browse.",
        )
    folder = runs / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, "Check permissions.", RunError) from error
    path = folder / f"{_plain(name)}-{hashlib.sha256(content).hexdigest()[:12]}{kind}"
    is_known = path.is_file()
    write_atomic(path, content)
    try:
        return _checked(name, path)
    except PromptError as error:
        if not is_known:
            path.unlink(missing_ok=True)
        told = error.message.replace(str(path), name)
        raise PromptError(told, remedy=error.remedy) from error


def _plain(name: str) -> str:
    """The name of a file without its ending, with harmless characters alone."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).stem).strip("-")[:40] or "prompts"


def _checked(name: str, path: Path) -> Uploaded:
    rows = read_file(path)
    columns = tuple(rows.column_names)
    column = USUAL if USUAL in columns else columns[0] if len(columns) == 1 else None
    if column is None:
        return Uploaded(name, path, columns, None, len(rows), ())
    texts = [text for text, _ in read_texts(DatasetSpecification(dataset=str(path), column=column))]
    first = tuple(clip(text, SHOWN_CHARACTERS) for text in texts[:SHOWN])
    return Uploaded(name, path, columns, column, len(texts), first)
