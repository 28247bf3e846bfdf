"""Records of judging: replies, verdicts, usage."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True, slots=True)
class Item:
    """A reply to judge, with its prompt and system prompt."""

    prompt: str
    reply: str
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on one reply.

    Attributes:
        label: One of the judge's labels.
        score: Probability that the reply counts, in [0, 1]; None if the judge gives none.
        reason: The judge's reason, which may quote the reply; empty if it gives none.
    """

    label: str
    score: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Requests and tokens used for judging; can be added and subtracted.

    Attributes:
        cached: Verdicts taken from the cache.
        requests: Answers received from the server, including unreadable ones.
        retries: Tries without an answer, or with an unreadable one.
        unmetered: Answers without a token count, whose tokens are missing below.
        prompt_tokens: Tokens of prompts, as counted by the server.
        completion_tokens: Tokens of answers, as counted by the server.
    """

    cached: int = 0
    requests: int = 0
    retries: int = 0
    unmetered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def cost(self, price_in: float, price_out: float) -> float:
        """Cost of the counted tokens, in the currency of the prices per million tokens."""
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6

    def summary(self, price_in: float | None = None, price_out: float | None = None) -> str:
        """The usage in one line, with the cost if prices are known."""
        tokens = f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        if self.unmetered:
            tokens += f" and those of {self.unmetered} answers without a count"
        line = f"{self.requests} requests ({self.retries} retries), {self.cached} from the cache, "
        line += tokens
        if price_in is not None and price_out is not None:
            line += f", cost {self.cost(price_in, price_out):.4f}"
        return line
