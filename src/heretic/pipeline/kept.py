"""Figures of chosen trials, kept in the run folder for the next save."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from heretic.errors import RunError
from heretic.runs.folder import RunFolder
from heretic.system.documents import parse_json


class Figures(Protocol):
    """What can be kept."""

    def to_dict(self, *, with_values: bool = False) -> dict[str, Any]:
        """JSON-ready form."""


Kept = TypeVar("Kept", bound=Figures)


def kept(
    folder: RunFolder,
    file: str,
    key: str,
    measure: Callable[[], Kept],
    from_dict: Callable[[Mapping[str, Any]], Kept],
) -> Kept:
    """The figures that a file of the run holds, or else new ones, which it holds from then on.

    Args:
        key: Says what was scored, on what, and by what.

    Raises:
        RunError: The run folder cannot be written to.
    """
    rows = _read(folder, file, from_dict)
    found = rows.get(key)
    if found is None:
        found = measure()
        content = {
            name: row.to_dict(with_values=True) for name, row in {**rows, key: found}.items()
        }
        folder.write_file(file, json.dumps(content, ensure_ascii=False) + "\n")
    return found


def _read(
    folder: RunFolder, file: str, from_dict: Callable[[Mapping[str, Any]], Kept]
) -> dict[str, Kept]:
    """What a file holds; nothing if it is damaged, since it can be measured again."""
    try:
        content = folder.read_file(file)
        rows = {} if content is None else parse_json(content, strict=False)
        return {str(key): from_dict(row) for key, row in rows.items()}
    except (RunError, ValueError, TypeError, KeyError, AttributeError):
        return {}
