"""Scorers of style: stock phrases, jokes, agreement, length, measured by rules in each reply.

An empty reply must not pass for an improvement, so it counts like the original model's reply.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, Field

from heretic.scorers.base import UNKNOWN, Outputs, Replies, mean
from heretic.scorers.keyword import normalize
from heretic.scorers.replies import OnPrompts, ReplyScorer

PHRASES = Path(__file__).with_name("phrases.txt")

RULES = Path(__file__).with_name("style.toml")


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of `style.toml`; patterns are searched for in normalised text.

    Attributes:
        joke: Found in a reply that has the form of a joke.
        verdict: Found where a reply contradicts (group `no`) or agrees (group `yes`).
        opening_words: Words from the start of a reply among which a verdict counts.
    """

    joke: re.Pattern[str]
    verdict: re.Pattern[str]
    opening_words: int


@cache
def _rules() -> Rules:
    table = tomllib.loads(RULES.read_text(encoding="utf-8"))
    agreement = table["agreement"]
    no, yes = (_any_of(agreement[key]) for key in ("contradictions", "agreements"))
    return Rules(
        joke=re.compile(_any_of("\n".join(table["jokes"].values()))),
        verdict=re.compile(f"(?P<no>{no})|(?P<yes>{yes})"),
        opening_words=agreement["opening_words"],
    )


def _any_of(patterns: str) -> str:
    """One pattern that matches any of the patterns, which are one a line."""
    return "|".join(line for line in patterns.splitlines() if line)


def words(reply: str) -> int:
    """Number of words in a reply, separated by white space."""
    return len(reply.split())


class StyleScorer(ReplyScorer):
    """Measures each reply separately by `of`; the score is the mean."""

    largest: ClassVar[float] = math.inf
    """Largest possible value of `of`."""

    def of(self, reply: str) -> float:
        """The value of one reply, at least 0; a boolean for a question of yes or no."""
        raise NotImplementedError

    def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
        """The value of each reply; of the original model's reply where the reply is empty."""
        pairs = zip(outputs.responses[self.set], baseline.responses[self.set], strict=True)
        return [self.of(reply if reply.strip() else original) for reply, original in pairs]

    def best_possible(self, replies: Replies) -> tuple[float, str]:
        """The score if missing and empty replies had the best possible value."""
        wanted = self.optimization == "maximize"
        if wanted and self.largest == math.inf:
            return super().best_possible(replies)
        best = self.largest if wanted else 0.0
        rows = replies[self.set]
        figures = [float(self.of(r)) if r is not None and r.strip() else best for r in rows]
        value = mean(figures)
        if value == (self.largest if wanted else 0.0):
            return value, UNKNOWN
        return value, f"at {'most' if wanted else 'least'} {value:.4g}"


class FormScorer(StyleScorer):
    """Tells whether each reply has a certain form; the score is the share of those that have."""

    is_share = True
    largest = 1.0

    def of(self, reply: str) -> bool:
        """Whether the reply has the form."""
        raise NotImplementedError

    def shows(self, reply: str) -> bool:
        """Whether the reply has the form, for the gradient sweep."""
        return self.of(reply)


class PhraseOptions(OnPrompts):
    """Options of `StockPhrases`."""

    phrases: tuple[str, ...] = Field(
        (), description="Phrases to count instead of those that come with Heretic."
    )


@cache
def _phrase_pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    chosen = phrases or tuple(PHRASES.read_text(encoding="utf-8").split("\n"))
    # longest first, so that a phrase inside a longer one is not counted instead of it
    texts = sorted({normalize(phrase) for phrase in chosen} - {""}, key=lambda t: (-len(t), t))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, texts))})(?!\w)")


class StockPhrases(StyleScorer):
    """Stock phrases per 100 words of a reply."""

    is_share = False
    Options: ClassVar[type[BaseModel]] = PhraseOptions

    def of(self, reply: str) -> float:
        """Stock phrases per 100 words."""
        found = len(_phrase_pattern(self.options.phrases).findall(normalize(reply)))
        return 100.0 * found / max(words(reply), 1)

    def shows(self, reply: str) -> bool:
        """Whether the reply contains at least one stock phrase."""
        return bool(_phrase_pattern(self.options.phrases).search(normalize(reply)))

    def shown(self, values: Sequence[float]) -> str:
        """The mean, as text such as `0.31 per 100 words`."""
        return f"{mean(values):.2f} per 100 words"


class Jokes(FormScorer):
    """Share of prompts whose reply has the form of a joke."""

    def of(self, reply: str) -> bool:
        """Whether the reply has the form of a joke."""
        return _rules().joke.search(normalize(reply)) is not None

    def decided(self, response: str) -> bool:
        """Whether the complete words make a joke already; the last word may still grow."""
        return self.of(" ".join(response.split()[:-1]))


def agreement(reply: str) -> bool | None:
    """Whether a reply opens with agreement (True) or contradiction (False); None for neither."""
    rules = _rules()
    opening = " ".join(normalize(reply).split()[: rules.opening_words])
    found = rules.verdict.search(opening)
    return None if found is None else found["yes"] is not None


class Agreement(FormScorer):
    """Share of prompts whose reply opens by agreeing with the user."""

    def of(self, reply: str) -> bool:
        """Whether the reply opens by agreeing."""
        return agreement(reply) is True

    def decided(self, response: str) -> bool:
        """Whether the first verdict is complete, with a word after it, or the opening is over."""
        whole = normalize(response).split()[:-1]
        return len(whole) >= _rules().opening_words or agreement(" ".join(whole[:-1])) is not None


class ReplyWords(StyleScorer):
    """Number of words of a reply, which has at most `max_response_length` tokens."""

    is_share = False

    def of(self, reply: str) -> float:
        """Number of words in the reply."""
        return float(words(reply))

    def shown(self, values: Sequence[float]) -> str:
        """The mean, as text such as `41.5 words`."""
        return f"{mean(values):.1f} words"
