"""Which batch file a batch's folder belongs to: two files of one name would share it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from heretic.batch.file import OWNER
from heretic.errors import HereticError, RunError, SettingsError
from heretic.records import parse
from heretic.system.documents import read_json
from heretic.system.files import write_atomic

_FILE = "file"


def check_owner(file: Path, folder: Path) -> None:
    """Refuse the folder of another batch file, which is still there.

    Raises:
        SettingsError: It is that of another one.
        RunError: What says whose it is cannot be read.
    """
    other = _owner(folder)
    if other is None or not other.exists() or other.samefile(file):
        return
    raise SettingsError(
        f"{folder} holds the jobs of {other.resolve()}, which has the same name as {file}.",
        remedy="Rename one of the two files, or give it another study_checkpoint_dir in "
        "[defaults].",
    )


def claim(file: Path, folder: Path) -> None:
    """Keep whose folder it is, from now on; the folder exists.

    Raises:
        RunError: It cannot be written.
    """
    text = json.dumps({_FILE: _from(folder, file)}) + "\n"
    path = folder / OWNER
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)


def _from(folder: Path, file: Path) -> str:
    """The way from a folder to a file: it holds for a copy of all of it, too."""
    try:
        return os.path.relpath(file.resolve(), folder.resolve())
    except ValueError:  # another drive
        return str(file.resolve())


def _owner(folder: Path) -> Path | None:
    """The batch file that a folder belongs to; None if that is not known."""
    path = folder / OWNER
    if not path.exists():
        return None
    try:
        content = parse.table(read_json(path), "it")
        return folder.resolve() / parse.text(content.get(_FILE), _FILE)
    except (ValueError, HereticError) as error:
        raise RunError(
            f"{path} does not say which batch file the folder belongs to: {error}.",
            remedy="Delete it.",
        ) from error
