"""Ready configurations for behaviours other than refusal: prompts that contrast it, and scorers.

Each is a folder with `config.toml`, settings as users write them, and the prompts beside it. This
module needs nothing else, so that the help can list them quickly.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

OWN_FOLDER = Path(__file__).parent
FILE_NAME = "config.toml"
ABOUT = "about"
"""Key beside the settings: what it is, in one line."""


def names() -> list[str]:
    """Those that come with Heretic."""
    return sorted(path.parent.name for path in OWN_FOLDER.glob(f"*/{FILE_NAME}"))


def documented() -> Iterator[tuple[str, str]]:
    """Name and meaning of each that comes with Heretic."""
    for name in names():
        text = (OWN_FOLDER / name / FILE_NAME).read_text(encoding="utf-8")
        yield name, tomllib.loads(text)[ABOUT]
