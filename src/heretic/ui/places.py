"""What of the disk the page may show and use: some folders and what lies below them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from heretic.errors import HereticError
from heretic.system.files import expanded

MOST_ENTRIES = 500
"""Of a folder, in a picker."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder in a picker.

    Attributes:
        path: Resolved.
    """

    name: str
    path: Path
    is_folder: bool


@dataclass(frozen=True, slots=True)
class Places:
    """Folders that may be shown, resolved."""

    roots: tuple[Path, ...]

    @classmethod
    def of(cls, folders: Iterable[Path]) -> Places:
        """These folders, each once; those that do not exist count once they do."""
        return cls(tuple(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders)))

    def checked(self, named: str | Path) -> Path:
        """A path as it is used, with all links resolved; it need not exist.

        Raises:
            HereticError: It lies elsewhere, or is malformed.
        """
        with suppress(ValueError, OSError, RuntimeError):  # null characters, circles of links
            path = Path(os.path.realpath(expanded(named)))
            if any(path.is_relative_to(root) for root in self.roots):
                return path
        raise HereticError(
            f"{named} is not in a folder that this page shows.",
            remedy="`heretic ui --folder PATH` adds a folder.",
        )

    def entries(self, folder: str | Path) -> list[Entry]:
        """What a folder holds: folders first, in the order of names; no hidden ones.

        Links that lead out of the places are left out.

        Raises:
            HereticError: It lies elsewhere, or cannot be read.
        """
        path = self.checked(folder)
        try:
            names = [name for name in os.listdir(path) if not name.startswith(".")]  # noqa: PTH208
        except OSError as error:
            raise HereticError(
                f"{path} cannot be read: {error.strerror or error}.", remedy="Choose another."
            ) from error
        found = []
        for name in names:
            with suppress(HereticError, OSError):
                target = self.checked(path / name)
                if target.exists():
                    found.append(Entry(name, target, target.is_dir()))
        found.sort(key=lambda entry: (not entry.is_folder, entry.name.lower()))
        return found[:MOST_ENTRIES]

    def parent(self, folder: Path) -> Path | None:
        """The folder above; None where that may not be shown."""
        with suppress(HereticError):
            above = self.checked(folder.parent)
            return above if above != folder else None
        return None
