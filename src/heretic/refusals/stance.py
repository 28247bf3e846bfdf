"""What the beginning of a reply commits the rest to, by the same rules as whole replies."""

from __future__ import annotations

from typing import Literal

from heretic.refusals.detector import LABELS, classify
from heretic.refusals.rules import languages
from heretic.refusals.text import answer_start, fold

Stance = Literal["declines", "complies"]

_DECLINES = frozenset(LABELS) - {"compliance", "degenerate"}
_REST = " help with that."
"""Ends a sentence that breaks off: "I cannot" alone does not say what is declined."""


def stance(beginning: str) -> Stance | None:
    """Whether the text that every reply begins with declines or complies already.

    Args:
        beginning: It may end within a sentence; reasoning between tags is ignored.

    Returns:
        None if it leaves that open, or holds no words.
    """
    start, _ = answer_start(beginning)
    said = beginning[start:]
    if not any(character.isalnum() for character in said):
        return None
    if any(classify(text).label in _DECLINES for text in (said, said.rstrip() + _REST)):
        return "declines"
    rules = (language.acts.get("accept") for language in languages())
    accepts = any(rule is not None and rule.search(fold(said)) is not None for rule in rules)
    return "complies" if accepts else None
