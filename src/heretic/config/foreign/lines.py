"""What is said of a file of the other tool that is read as it is, in lines."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from heretic.config.foreign.rules import NAME

if TYPE_CHECKING:
    from heretic.config.foreign.translate import Entry, Translation

_WHAT = {
    "settings": "settings",
    "judge": "settings of a judge",
    "reproduction": "a reproduction file",
}


def title(translation: Translation) -> str:
    """What the file is: `settings of heretic-llm 2.x`."""
    of = f" {translation.release}" if translation.release else ""
    return f"{_WHAT[translation.kind]} of {NAME}{of}, another project"


def counts(translation: Translation) -> str:
    """How many keys were taken, and how many were not."""
    taken, needless = len(translation.taken), len(translation.of("needless"))
    left = len(translation.entries) - taken - needless
    rest = f", {needless} not needed" if needless else ""
    return f"{taken} of {len(translation.entries)} keys taken, {left} left out{rest}"


def in_lines(translation: Translation, path: Path) -> tuple[str, ...]:
    """One line for the file, for each key that was renamed or converted, and for each left out."""
    how = f"`heretic migrate {shlex.quote(str(path))}` writes it as TOML of this tool"
    lines = [f"{path} holds {title(translation)}: {counts(translation)}; {how}."]
    lines += [f"  {_spelled(entry)}" for entry in translation.of("renamed", "converted")]
    lines += [
        f"  {entry.key} is left out: {entry.text}." for entry in translation.of("left", "consent")
    ]
    return tuple(lines)


def _spelled(entry: Entry) -> str:
    """A key that was taken, with its new name where it has one, and what to know of it."""
    name = entry.key if entry.to in ("", entry.key) else f"{entry.key} is {entry.to} here"
    return f"{name}: {entry.text}." if entry.text else f"{name}."
