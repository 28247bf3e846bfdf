"""Teacher forcing: a model's predictions along text that it did not generate itself.

Along the original's replies, one forward pass shows how far an edited model differs from the
original after the first token. Along other texts it gives the perplexity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heretic.model.choice import most_likely
from heretic.model.outputs import KEPT, Continuation, Reading, Reference
from heretic.system import memory

if TYPE_CHECKING:
    from heretic.model.core import Model
    from heretic.model.reading import Prompts

_Take = Callable[[int, int, Tensor], None]


def reference(model: Model, prompts: Prompts, positions: int) -> Reference:
    """Greedy replies of a model as it acts now, and its distributions along them.

    Args:
        positions: Most positions per reply at which the next token is predicted.
    """
    replies = [
        tuple(ids[: positions - 1]) for ids in model.get_reply_ids_batched(prompts, positions)
    ]
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def take(row: int, count: int, logprobs: Tensor) -> None:
        best = logprobs.topk(min(KEPT, logprobs.shape[-1]), dim=-1)
        found[row] = best.indices.to("cpu", torch.int32), best.values.cpu()

    _along(model, prompts, replies, positions, take)
    kept = max(values.shape[-1] for _, values in found.values())
    tokens = torch.zeros(len(prompts), positions, kept, dtype=torch.int32)
    logprobs = torch.full(tokens.shape, torch.nan)
    for row, (indices, values) in found.items():
        tokens[row, : len(indices)], logprobs[row, : len(values)] = indices, values
    return Reference(tuple(replies), tokens, logprobs)


def continuation(model: Model, prompts: Prompts, original: Reference) -> Continuation:
    """Predictions of a model as it acts now, along another model's replies to the same prompts."""
    shape = original.tokens.shape[:2]
    divergence, agreement = torch.full(shape, torch.nan), torch.full(shape, torch.nan)

    def take(row: int, count: int, found: Tensor) -> None:
        tokens = original.tokens[row, :count].to(found.device).long()
        before = original.logprobs[row, :count].to(found.device)
        divergence[row, :count] = kept_divergence(before, found.gather(-1, tokens)).cpu()
        same = most_likely(found) == tokens[:, 0]
        agreement[row, :count] = same.float().cpu()

    _along(model, prompts, original.replies, shape[1], take)
    return Continuation(divergence, agreement)


def kept_divergence(before: Tensor, after: Tensor) -> Tensor:
    """KL in nats, [positions], from log-probabilities [positions, kept]; the rest counts as one.

    Differentiable in `after`.
    """
    left, right = before.double(), after.double()
    rest = [(1 - part.exp().sum(dim=-1)).clamp_min(1e-12) for part in (left, right)]
    # A rest this small is rounding of float32.
    tail = torch.where(rest[0] > 1e-6, rest[0] * (rest[0] / rest[1]).log(), 0)
    return ((left.exp() * (left - right)).sum(dim=-1) + tail).clamp_min(0).float()


def _along(
    model: Model,
    prompts: Prompts,
    replies: Sequence[Sequence[int]],
    positions: int,
    take: _Take,
) -> None:
    """Call `take` with the log-probabilities after each prompt and each token of its reply.

    Its arguments are a row's number, its number of positions, and float32 [positions, vocabulary].
    """
    rows = [
        row + list(reply) for row, reply in zip(model.encode_rows(prompts), replies, strict=True)
    ]
    order = sorted(range(len(rows)), key=lambda row: (-len(rows[row]), row))

    def work(part: slice) -> None:
        numbers = order[part]
        logits = model.tail_logits([rows[number] for number in numbers], positions)
        for number, found in zip(numbers, logits, strict=True):
            count = len(replies[number]) + 1
            take(number, count, found[positions - count :].float().log_softmax(dim=-1))

    # One row has logits at `positions` positions here, as many as that many rows while decoding.
    size = max(1, model.batch_size // positions)
    memory.halving(len(rows), size, work, lambda smaller: None)


def reading(model: Model, texts: Sequence[str], max_tokens: int) -> Reading:
    """How well a model as it acts now predicts texts; they are read one at a time.

    Args:
        max_tokens: Longer texts are cut to this many tokens.
    """
    nll = torch.zeros(len(texts), dtype=torch.float64)
    tokens = torch.zeros(len(texts), dtype=torch.int64)
    for number, ids in enumerate(model.encode_texts(texts, max_tokens)):
        if len(ids) < 2:
            continue  # no token to predict
        logprobs = model.tail_logits([ids], len(ids))[0, :-1].float().log_softmax(dim=-1)
        seen = torch.tensor(ids[1:], device=logprobs.device)
        nll[number] = -logprobs.gather(-1, seen[:, None]).double().sum().cpu()
        tokens[number] = len(ids) - 1
    return Reading(nll, tokens)
