"""How likely a model finds the candidate endings of contexts (items), by teacher forcing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heretic.errors import PromptError
from heretic.model.choice import most_likely
from heretic.model.outputs import Endings
from heretic.system import memory

if TYPE_CHECKING:
    from heretic.model.core import Model
    from heretic.prompts import Item


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """Token ids of an item.

    Attributes:
        context: What all endings share, at least one token.
        endings: The rest of the text with each ending, at least one token each.
    """

    context: Sequence[int]
    endings: Sequence[Sequence[int]]

    @property
    def branches(self) -> list[Sequence[int]]:
        """What a model has to read after the context to predict each ending: all but its end."""
        return [ending[:-1] for ending in self.endings]

    @property
    def packed(self) -> list[int]:
        """The context and all branches, one after the other."""
        return [*self.context, *(token for branch in self.branches for token in branch)]

    @property
    def sources(self) -> list[list[int]]:
        """After which tokens of the packed row the tokens of each ending are predicted.

        Counted from the context's last token, which is 0.
        """
        found, start = [], 1
        for branch in self.branches:
            found.append([0, *range(start, start + len(branch))])
            start += len(branch)
        return found


Found = tuple[Tensor, Tensor]
"""Of one ending: the log-probability of its tokens together, float64 [], in nats, and whether each
of them is the likeliest, bool []."""


def encode_items(model: Model, items: Sequence[Item]) -> list[EncodedItem]:
    """Token ids of items as plain text, without chat template and response prefix.

    The text of a context with an ending is encoded as a whole, as it would be read. What the texts
    with all endings share with the context alone is the context; so a token that reaches from the
    context into an ending belongs to the ending.

    Raises:
        ModelError: A text has a token without an embedding.
        PromptError: A text has more tokens than the model has positions, or the tokenizer has no
            token for a context or an ending.
    """
    texts = [
        f"{item.user}{rest}"
        for item in items
        for rest in ("", *(f"{item.delimiter}{ending}" for ending in item.endings))
    ]
    rows = model.renderer.token_ids(texts)
    model.limits.check_ids(rows, model.tokenizer)
    model.limits.check_lengths(rows, texts)
    given = iter(rows)
    return [_encoded(item, next(given), [next(given) for _ in item.endings]) for item in items]


def _encoded(item: Item, context: list[int], wholes: Sequence[list[int]]) -> EncodedItem:
    shared = 0
    while all(row[: shared + 1] == context[: shared + 1] for row in wholes):
        shared += 1
        if shared == len(context):
            break
    endings = [row[shared:] for row in wholes]
    if not shared or not all(endings):
        raise PromptError(
            f"The tokenizer has no tokens of their own for the context {item.user[:60]!r} and its "
            "endings.",
            remedy="Leave the item out, or check the tokenizer.",
        )
    return EncodedItem(context[:shared], endings)


def predicted(logits: Tensor, ending: Sequence[int]) -> Found:
    """How an ending was predicted.

    Args:
        logits: Raw logits for each of its tokens, [tokens, vocabulary].
    """
    rows = logits.float()
    wanted = torch.tensor(ending, device=rows.device)
    logprobs = rows.gather(-1, wanted[:, None])[:, 0] - rows.logsumexp(dim=-1)
    return logprobs.double().sum(), (most_likely(rows) == wanted).all()


def gathered(items: Sequence[EncodedItem], found: Sequence[Sequence[Found]]) -> Endings:
    """The figures of all endings as one record, on the CPU."""
    shape = len(items), max(len(item.endings) for item in items)
    result = Endings(
        logprobs=torch.full(shape, torch.nan, dtype=torch.float64),
        tokens=torch.zeros(shape, dtype=torch.int64),
        greedy=torch.zeros(shape, dtype=torch.bool),
    )
    for row, (item, pairs) in enumerate(zip(items, found, strict=True)):
        there = slice(0, len(item.endings))
        result.logprobs[row, there] = torch.stack([logprob for logprob, _ in pairs]).cpu()
        result.greedy[row, there] = torch.stack([greedy for _, greedy in pairs]).cpu()
        result.tokens[row, there] = torch.tensor([len(ending) for ending in item.endings])
    return result


def plain_endings(model: Model, items: Sequence[EncodedItem]) -> Endings:
    """Figures of a model as it acts now, with one row of tokens for each ending.

    This is what `heretic.engine` does faster, with one row for each item.

    Raises:
        ModelError: Even a single row does not fit into memory.
    """
    pairs = [(row, place) for row, item in enumerate(items) for place in range(len(item.endings))]
    rows = [[*items[row].context, *items[row].branches[place]] for row, place in pairs]
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    found: dict[tuple[int, int], Found] = {}

    def work(part: slice) -> None:
        some = [(pairs[index], rows[index]) for index in order[part]]
        endings = [items[row].endings[place] for (row, place), _ in some]
        logits = model.tail_logits([ids for _, ids in some], max(map(len, endings)))
        for (pair, _), ending, row in zip(some, endings, logits, strict=True):
            found[pair] = predicted(row[-len(ending) :], ending)

    memory.halving(len(rows), model.batch_size, work, model.notify_halved)
    by_item = [
        [found[row, place] for place in range(len(item.endings))] for row, item in enumerate(items)
    ]
    return gathered(items, by_item)
