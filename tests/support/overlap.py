"""Near-duplicates between prompt lists, by token overlap.

A prompt that comes back reworded in another split would flatter every figure the demo reports, so
the overlap is measured and a test holds it under a stated threshold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

THRESHOLD = 0.5
"""Two prompts of different splits whose content words have a Jaccard index of this or more count as
near-duplicates."""

# Function words, and the verbs that requests open with: they say nothing about the subject.
_STOP_TEXT = (
    "a an and are as at be been by can could did do does for from had has have how i i'd i'm in "
    "into is it its let's me my of on one or our please should so some than that the their them "
    "there they this to us was we were what what's when where which who why will with would you "
    "your describe explain give list name suggest tell write "
)
STOP_WORDS = frozenset(_STOP_TEXT.split())


class Overlap(NamedTuple):
    """A pair of prompts and the Jaccard index of their content words (0 to 1)."""

    score: float
    first: str
    second: str


def content_words(prompt: str) -> frozenset[str]:
    """Lower-cased words of `prompt` without stop words; all its words if nothing else is left."""
    words = frozenset(re.findall(r"[a-z0-9']+", prompt.lower().replace("\u2019", "'")))
    return words - STOP_WORDS or words


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Shared words over all words, 0 to 1; 0 for two empty sets."""
    union = first | second
    return len(first & second) / len(union) if union else 0.0


def near_duplicates(
    first: Sequence[str], second: Iterable[str], threshold: float = THRESHOLD
) -> list[Overlap]:
    """Pairs (one prompt of each list) at or above `threshold`, the most alike first."""
    words = [(prompt, content_words(prompt)) for prompt in first]
    found = [
        Overlap(score, prompt, other)
        for other in second
        for other_words in [content_words(other)]
        for prompt, prompt_words in words
        if (score := jaccard(prompt_words, other_words)) >= threshold
    ]
    return sorted(found, reverse=True)
