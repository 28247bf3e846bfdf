"""Texts that a fit reads: along some the model shall not change, others it shall not write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from heretic.model import teacher_forcing
from heretic.model.core import Model
from heretic.model.reading import Prompts

ShownAt = Callable[[str, str], int | None]
"""(prompt, reply) -> where in the reply what shows the behaviour begins, in characters; None if
the reply does not show it."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A prompt and the original's reply, along which the model shall not change.

    Attributes:
        ids: Tokens of both.
        first: Index of the token after which the reply's first token is predicted.
        tokens: The most likely tokens at each position of the reply, int64 [positions, kept].
        logprobs: The original's log-probabilities of these, float32 [positions, kept].
    """

    ids: list[int]
    first: int
    tokens: Tensor
    logprobs: Tensor


@dataclass(frozen=True, slots=True)
class Pushed:
    """A prompt and the beginning of a reply, after which the model shall not write some tokens.

    Attributes:
        ids: Tokens of the prompt, of the beginning, and of all targets but the last.
        targets: The tokens that shall not follow the beginning.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def first(self) -> int:
        """Index of the token after which the first target is predicted."""
        return len(self.ids) - len(self.targets)


def kept_texts(model: Model, prompts: Prompts, positions: int) -> list[Kept]:
    """The original's own replies to prompts.

    Args:
        model: Unedited.
        positions: Most positions per reply.
    """
    if not prompts:
        return []
    original = teacher_forcing.reference(model, prompts, positions)
    rows = zip(model.encode_rows(prompts), original.replies, strict=True)
    return [
        Kept(
            ids=[*prompt, *reply],
            first=len(prompt) - 1,
            tokens=original.tokens[number, : len(reply) + 1].long(),
            logprobs=original.logprobs[number, : len(reply) + 1],
        )
        for number, (prompt, reply) in enumerate(rows)
    ]


def pushed_text(
    model: Model, prompt: Sequence[int], reply: str, at: int, length: int
) -> Pushed | None:
    """What a reply says from a place on, to be pushed away; None if nothing is there.

    Args:
        prompt: Its tokens.
        at: Place in the reply, in characters.
        length: Most tokens that are pushed away.
    """
    ids = model.tokenizer(reply, add_special_tokens=False).input_ids
    start = 0
    while start < len(ids) and len(model.decode(ids[: start + 1])) <= at:
        start += 1
    targets = ids[start : start + length]
    if not targets:
        return None
    return Pushed((*prompt, *ids[:start], *targets[:-1]), tuple(targets))
