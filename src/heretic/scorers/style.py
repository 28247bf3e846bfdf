"""Behaviours of style: stock phrases, jokes, agreement, length. Counted by rules in each reply.

An empty reply shows nothing and is no improvement: it counts as the original's reply does.
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

from heretic.scorers.base import Outputs, Replies, mean
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
    """One pattern of many, which stand one a line."""
    return "|".join(line for line in patterns.splitlines() if line)


def words(reply: str) -> int:
    """How many words a reply has."""
    return len(reply.split())


class StyleScorer(ReplyScorer):
    """Judges each reply by itself through `of`; the score is the mean."""

    largest: ClassVar[float] = math.inf
    """No reply has more."""

    def of(self, reply: str) -> float:
        """The figure of a reply, at least 0; a boolean where it is yes or no."""
        raise NotImplementedError

    def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
        """The figure of each reply; of the original's where there is none."""
        pairs = zip(outputs.responses[self.set], baseline.responses[self.set], strict=True)
        return [self.of(reply if reply.strip() else original) for reply, original in pairs]

    def best_possible(self, replies: Replies) -> tuple[float, str]:
        """As if what is to come, and what is empty, were as good as can be."""
        wanted = self.optimization == "maximize"
        if wanted and self.largest == math.inf:
            return super().best_possible(replies)
        best = self.largest if wanted else 0.0
        rows = replies[self.set]
        figures = [float(self.of(r)) if r is not None and r.strip() else best for r in rows]
        value = mean(figures)
        return value, f"at {'most' if wanted else 'least'} {value:.4g}"


class FormScorer(StyleScorer):
    """Says of each reply whether it has a form; the score is the share that has."""

    largest = 1.0

    def of(self, reply: str) -> bool:
        """Whether it has."""
        raise NotImplementedError

    def shows(self, reply: str) -> bool:
        """As `of`."""
        return self.of(reply)


class PhraseOptions(OnPrompts):
    """Which phrases."""

    phrases: tuple[str, ...] = Field(
        (), description="Phrases to count, in place of those that come with Heretic."
    )


@cache
def _phrase_pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    chosen = phrases or tuple(PHRASES.read_text(encoding="utf-8").split("\n"))
    # longest first, so that one inside another is not counted as well
    texts = sorted({normalize(phrase) for phrase in chosen} - {""}, key=lambda t: (-len(t), t))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, texts))})(?!\w)")


class StockPhrases(StyleScorer):
    """Stock phrases per 100 words of a reply."""

    Options: ClassVar[type[BaseModel]] = PhraseOptions

    def of(self, reply: str) -> float:
        """Phrases per 100 words."""
        found = len(_phrase_pattern(self.options.phrases).findall(normalize(reply)))
        return 100.0 * found / max(words(reply), 1)

    def shows(self, reply: str) -> bool:
        """Whether there is one at all."""
        return bool(_phrase_pattern(self.options.phrases).search(normalize(reply)))

    def shown(self, values: Sequence[float]) -> str:
        """Their mean."""
        return f"{mean(values):.2f} per 100 words"


class Jokes(FormScorer):
    """Share of prompts whose reply has the form of a joke."""

    def of(self, reply: str) -> bool:
        """Whether it has."""
        return _rules().joke.search(normalize(reply)) is not None

    def decided(self, response: str) -> bool:
        """What whole words make up cannot be unseen; the last may still grow."""
        return self.of(" ".join(response.split()[:-1]))


def agreement(reply: str) -> bool | None:
    """Whether a reply opens by agreeing (True) or contradicting (False); None if by neither."""
    rules = _rules()
    opening = " ".join(normalize(reply).split()[: rules.opening_words])
    found = rules.verdict.search(opening)
    return None if found is None else found["yes"] is not None


class Agreement(FormScorer):
    """Share of prompts whose reply opens by agreeing with what the user says."""

    def of(self, reply: str) -> bool:
        """Whether it does."""
        return agreement(reply) is True

    def decided(self, response: str) -> bool:
        """The first verdict counts, once the word after it has begun; or the opening is over."""
        whole = normalize(response).split()[:-1]
        return len(whole) >= _rules().opening_words or agreement(" ".join(whole[:-1])) is not None


class ReplyWords(StyleScorer):
    """Words of a reply, up to `max_response_length` tokens."""

    def of(self, reply: str) -> float:
        """How many."""
        return float(words(reply))

    def shown(self, values: Sequence[float]) -> str:
        """Their mean."""
        return f"{mean(values):.1f} words"
