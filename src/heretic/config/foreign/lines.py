"""What is said of a file of the other tool that is read as it is, in lines."""

from __future__ import annotations

import shlex
from pathlib import Path

from heretic.config.foreign.convert import Document
from heretic.config.foreign.rules import rules_of
from heretic.config.foreign.translate import NAME, Entry, Translation, foreign_keys
from heretic.config.schema import SettingsOrigin, settings_of, unknown_key
from heretic.errors import SettingsError

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
    taken = len(translation.taken)
    left = len(translation.entries) - taken - len(translation.of("needless"))
    return f"{taken} of {len(translation.entries)} keys taken, {left} left out"


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


def check_known(translation: Translation, origin: SettingsOrigin) -> None:
    """Refuse keys that neither tool has: they may be misspelled.

    Raises:
        SettingsError: There is such a key, or nothing at all was taken.
    """
    for entry in translation.of("unknown"):
        raise unknown_key(tuple(entry.key.split(".")), origin)
    if not translation.values:
        raise SettingsError(f"Nothing {origin.name} could be taken: it holds {title(translation)}.")


def check_ours(values: Document, path: Path, origin: SettingsOrigin) -> None:
    """Refuse a key that only the other tool has, in a file with settings that only this one has.

    Raises:
        SettingsError: There is one.
    """
    rules = rules_of("settings")
    for key in foreign_keys(values):
        if key in {setting.name for setting in settings_of()}:
            continue  # what is wrong in it is told when it is validated
        why = rules[key].why if key in rules else ""
        raise SettingsError(
            f"Unknown setting {key} {origin.name}: it is one of {NAME}, another project, and other "
            "settings there are this tool's.",
            remedy=f"{why[:1].upper()}{why[1:]}{'. ' if why else ''}Leave it out, or convert the "
            f"file: heretic migrate {shlex.quote(str(path))}.",
        )
