"""Records of a model's outputs along text that it did not generate itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

KEPT = 1024
"""Number of the original's likeliest tokens kept at every position; the rest is one outcome."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The original's greedy replies, and its distributions of the next token along them.

    A reply of n tokens has n + 1 positions: the token after its last one is predicted too.

    Attributes:
        replies: Token ids of each reply.
        tokens: The likeliest tokens at each position, likeliest first, int32 [prompts, positions,
            kept].
        logprobs: Their log-probabilities, float32, the same shape; NaN after a reply's end.
    """

    replies: tuple[tuple[int, ...], ...]
    tokens: Tensor
    logprobs: Tensor


@dataclass(frozen=True, slots=True)
class Continuation:
    """A model's predictions along the original's replies (teacher forcing).

    Values after the end of a reply are NaN.

    Attributes:
        divergence: KL(original || model) of each next token, float32 [prompts, positions], in
            nats. Tokens beyond the original's `KEPT` likeliest count as one outcome, so this is a
            lower bound, very close to the exact value.
        agreement: 1 where the likeliest next token is the original's, else 0; float32, the same
            shape.
    """

    divergence: Tensor
    agreement: Tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """How well a model predicts texts.

    Attributes:
        nll: Negative log-likelihood of each text after its first token, float64 [texts], in
            nats.
        tokens: Number of tokens that `nll` covers, int64 [texts].
    """

    nll: Tensor
    tokens: Tensor

    @property
    def surprise(self) -> Tensor:
        """`nll` under the name that plugins of earlier releases read."""
        return self.nll


@dataclass(frozen=True, slots=True)
class Endings:
    """How likely a model finds the candidate endings of items.

    Attributes:
        logprobs: Log-probability of an ending's tokens together, given its context, float64 [items,
            endings], in nats; NaN where an item has fewer endings.
        tokens: Number of tokens of each ending, int64, the same shape; 0 where there is none.
        greedy: Whether greedy decoding after the context gives the ending, bool, the same shape.
    """

    logprobs: Tensor
    tokens: Tensor
    greedy: Tensor
