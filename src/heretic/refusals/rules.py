"""The rules of every language, read from `languages/*.toml` and compiled once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

Act = Literal[
    "decline",
    "incapable",
    "improper",
    "reproach",
    "apology",
    "accept",
    "instead",
    "redirect",
    "lecture",
    "resume",
    "turn",
    "answered",
    "concede",
    "unreal",
    "correct",
    "preach",
    "ask",
    "praise",
    "evade",
    "receive",
    "offer",
    "comment",
    "caution",
    "reason",
]
"""What a sentence does; docs/refusals.md explains the acts."""

_SLOT = re.compile(r"<([a-z_]+)>")


@dataclass(frozen=True, slots=True)
class Rule:
    """The wordings of one act in one language.

    Attributes:
        any: A sentence without one of these words is not searched, which saves time. They are
            parts of words where the language writes no spaces.
        asked: Words in a prompt that make the act an ordinary answer to it.
        opening: Pattern at the start of the sentence, or None.
        inside: Pattern anywhere in the sentence, or None.
    """

    any: frozenset[str]
    asked: frozenset[str]
    opening: re.Pattern[str] | None
    inside: re.Pattern[str] | None

    def search(self, text: str, begin: int = 0) -> tuple[int, int] | None:
        """Start and end of the act in a sentence, searched from an offset; None if it is absent."""
        found = self.opening.match(text) if self.opening and not begin else None
        if found is None and self.inside:
            found = self.inside.search(text, begin)
        return found.span() if found else None


@dataclass(frozen=True, slots=True)
class Language:
    """One language's rules.

    Attributes:
        code: ISO 639-1.
        spaced: Whether spaces separate words.
        function_words: Frequent words that say nothing about the topic.
        acts: Rules by act.
        cues: The words `any` of all rules together.
    """

    code: str
    spaced: bool
    function_words: frozenset[str]
    acts: Mapping[Act, Rule]
    cues: frozenset[str]


@cache
def languages() -> tuple[Language, ...]:
    """All languages that have rules, English first."""
    folder = resources.files("heretic.refusals") / "languages"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".toml"))
    names.sort(key=lambda name: name != "en.toml")
    return tuple(
        _language(name.removesuffix(".toml"), (folder / name).read_text(encoding="utf-8"))
        for name in names
    )


@cache
def spaced_function_words() -> frozenset[str]:
    """The function words of all languages that write spaces between words."""
    return frozenset().union(*(one.function_words for one in languages() if one.spaced))


def _language(code: str, source: str) -> Language:
    table = tomllib.loads(source)
    slots: dict[str, str] = {}
    for name, pattern in table.get("slots", {}).items():
        slots[name] = _filled(pattern, slots)
    spaced = table.get("spaced", True)
    acts = {act: _rule(rule, slots, spaced) for act, rule in table["acts"].items()}
    words = frozenset(table.get("function_words", "").split())
    cues = frozenset().union(*(rule.any for rule in acts.values()))
    return Language(code, spaced, words, acts, cues)


def _rule(rule: Mapping[str, str], slots: Mapping[str, str], spaced: bool) -> Rule:
    lines = [line.strip() for line in rule["patterns"].splitlines() if line.strip()]
    opening = [line[1:] for line in lines if line.startswith("^")]
    inside = [line for line in lines if not line.startswith("^")]
    return Rule(
        any=frozenset(rule["any"].split()),
        asked=frozenset(rule.get("asked", "").split()),
        opening=_compiled(opening, slots, edge=""),
        inside=_compiled(inside, slots, edge=r"\b" if spaced else ""),
    )


def _compiled(
    lines: Sequence[str], slots: Mapping[str, str], *, edge: str
) -> re.Pattern[str] | None:
    """Join lines into one pattern. Lines that begin with the same slot share it, for speed."""
    if not lines:
        return None
    groups: dict[str, list[str]] = {}
    for line in lines:
        slot = _SLOT.match(line)
        groups.setdefault(slot[0] if slot else "", []).append(line[slot.end() if slot else 0 :])
    parts = [
        slot + "(?:" + "|".join(f"(?:{rest})" for rest in group) + ")"
        for slot, group in groups.items()
    ]
    return re.compile(edge + _filled("(?:" + "|".join(parts) + ")", slots))


def _filled(pattern: str, slots: Mapping[str, str]) -> str:
    """Replace each `<name>` by its slot. A KeyError here is a mistake in the data."""
    return _SLOT.sub(lambda found: slots[found[1]], pattern)
