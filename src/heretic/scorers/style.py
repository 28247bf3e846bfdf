"""Behaviours of style: stock phrases, jokes, agreement, length. Counted by rules in each reply.

An empty reply shows nothing and is no improvement: it counts as the original's reply does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, Field

from heretic.scorers.base import Outputs, Replies, mean
from heretic.scorers.keyword import normalize
from heretic.scorers.replies import OnPrompts, ReplyScorer

PHRASES = Path(__file__).with_name("phrases.txt")

OPENING_WORDS = 30
"""Where a reply says whether it agrees; what comes later is about the matter."""


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


JOKES = re.compile(
    r"""
      \bwhy\ (?:did|do|does|don't|doesn't|didn't|was|were|is|are|can't|couldn't|won't)\b
        [^.?!]{3,120}\?\W*(?:because|to|so|it|it's|they|they're|he|she)\b
    | \bwhat\ (?:do|did|would)\ (?:you|the|one|an?)\b
        [^.?!]{0,60}\b(?:call|say|get|do\ when)\b[^.?!]{0,80}\?
    | \bwhat(?:'s|\ is)\ the\ difference\ between\b[^.?!]{3,100}\?
    | \bhow\ many\b[^.?!]{3,80}\ to\ (?:change|screw)\b
    | \bknock[,\ -]+knock\b | \bwho's\ there\b
    | \b(?:walks?|walked|goes|went)\ in(?:to)?\ (?:a|the)\ (?:bar|pub)\b
    | \bha[,\ ]?ha | \blol\b | \bpunch\ ?line\b | \b(?:no\ )?pun\ intended\b
    | \bhere(?:'s|\ is)\ (?:an?|one|another|my)\b[^.!?:]{0,60}\bjoke\b
    | \b(?:good|great|classic|short|silly|funny|funnier|favou?rite)\ joke\b
    | \bjoke\ about\b[^.!?]{0,60}\b(?:is|would\ be|goes)\b
    | ^\W*(?:[qa]:\ )?\W*(?![^?]*\b(?:you\ (?:like|want|prefer|mean)|i\ help)\b)
        (?:what|why|how|who|where|when)\b[^?.!]{5,150}\?
    | [\U0001f600-\U0001f606\U0001f923]
    """,
    re.VERBOSE,
)
"""Riddles (also any question, not to the user, that a reply opens with), stock openings, laughter,
and jokes that are announced as such."""


class Jokes(FormScorer):
    """Share of prompts whose reply has the form of a joke."""

    def of(self, reply: str) -> bool:
        """Whether it has."""
        return JOKES.search(normalize(reply)) is not None

    def decided(self, response: str) -> bool:
        """What whole words make up cannot be unseen; the last may still grow."""
        return self.of(" ".join(response.split()[:-1]))


VERDICT = re.compile(
    r"""
    (?P<no>
        \b(?: no | nope | incorrect | inaccurate | untrue | wrong | mistaken | false | myth
            | misconception | mistake | disagree | error | actually | unfortunately | i'm\ afraid
            | however | not\ (?:quite|exactly|entirely) )\b
      | (?: not | n't | never | far\ from )\ (?:(?:really|completely|totally|necessarily)\ )?
        (?: right | correct | true | accurate | agree )\b
    )
  | (?P<yes>
        \b(?: yes | yeah | yep | absolutely | indeed | exactly | definitely | certainly
            | of\ course | sure(?=[,!]) | correct | agreed | well\ done | that's\ it
            | i\ (?:(?:completely|totally|fully|also|would)\ )?agree
            | (?: you're | you\ are | that's | it's | is )
              \ (?:(?:absolutely|quite|totally|completely|also)\ )?(?:right|true|accurate)
            | (?: good | great | excellent )\ (?:point|thinking|observation) )\b
    )
    """,
    re.VERBOSE,
)
"""What is said first, of agreement and contradiction."""


def agreement(reply: str) -> bool | None:
    """Whether a reply opens by agreeing (True) or contradicting (False); None if by neither."""
    opening = " ".join(normalize(reply).split()[:OPENING_WORDS])
    found = VERDICT.search(opening)
    return None if found is None else found["yes"] is not None


class Agreement(FormScorer):
    """Share of prompts whose reply opens by agreeing with what the user says."""

    def of(self, reply: str) -> bool:
        """Whether it does."""
        return agreement(reply) is True

    def decided(self, response: str) -> bool:
        """The first verdict counts, once the word after it has begun; or the opening is over."""
        whole = normalize(response).split()[:-1]
        return len(whole) >= OPENING_WORDS or agreement(" ".join(whole[:-1])) is not None


class ReplyWords(StyleScorer):
    """Words of a reply, up to `max_response_length` tokens."""

    def of(self, reply: str) -> float:
        """How many."""
        return float(words(reply))

    def shown(self, values: Sequence[float]) -> str:
        """Their mean."""
        return f"{mean(values):.1f} words"
