"""What a model puts out along text that it did not write itself: records of tensors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

KEPT = 1024
"""Likeliest tokens of the original that are kept at every position; the rest counts as one."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The original's greedy replies, and how likely it took the next token to be.

    A reply of n tokens that ended has n + 1 positions: what comes after its last token, its end,
    was foreseen too.

    Attributes:
        replies: Token ids, without the position that was foreseen last.
        tokens: The likeliest tokens at each position, likeliest first, int32 [prompts, positions,
            kept].
        logprobs: Their log-probabilities, float32, the same shape; NaN after a reply's end.
    """

    replies: tuple[tuple[int, ...], ...]
    tokens: Tensor
    logprobs: Tensor


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a model goes on where the original's own replies are put into its mouth.

    NaN stands where a reply had ended.

    Attributes:
        divergence: KL(original || model) of each next token, float32 [prompts, positions], in
            nats. Tokens beyond the original's `KEPT` likeliest count as one outcome, so it is a
            lower bound, by next to nothing.
        agreement: 1 where the likeliest next token is the original's, else 0, the same shape.
    """

    divergence: Tensor
    agreement: Tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model takes texts.

    Attributes:
        nll: Negative log-likelihood of each text after its first token, float64 [texts], in
            nats.
        tokens: How many tokens that were, int64 [texts].
    """

    nll: Tensor
    tokens: Tensor
