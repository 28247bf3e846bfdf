"""What is judged, what comes out, and what it took."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True, slots=True)
class Item:
    """A reply to be judged, with what it answers."""

    prompt: str
    reply: str
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of one reply.

    Attributes:
        label: One of the judge's labels.
        score: Probability that the reply counts, in [0, 1]; None where the judge gives none.
        reason: In the judge's words; may quote the reply. Empty where it gives none.
    """

    label: str
    score: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What judging took; adds up.

    Attributes:
        cached: Verdicts taken from the cache.
        requests: Answers received from the server, those that could not be read included.
        retries: Tries that brought no answer, or one that could not be read.
        unmetered: Answers that came without a token count; they are missing from the counts.
        prompt_tokens, completion_tokens: As counted by the server.
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
        """Of the counted tokens, in the currency of the prices per million tokens."""
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6

    def summary(self, price_in: float | None = None, price_out: float | None = None) -> str:
        """In one line, with the cost where prices are known."""
        tokens = f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        if self.unmetered:
            tokens += f" and those of {self.unmetered} answers that came without a count"
        line = f"{self.requests} requests ({self.retries} retries), {self.cached} from the cache, "
        line += tokens
        if price_in is not None and price_out is not None:
            line += f", cost {self.cost(price_in, price_out):.4f}"
        return line
