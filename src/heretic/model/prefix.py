"""The response prefix: the text that replies begin with, added to the end of every prompt.

Evaluation then starts where replies differ. A reasoning block that is open is closed, so evaluation
reads the answer and not the reasoning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heretic.model.core import Model
    from heretic.model.reading import Prompts

SHARE = 0.95
"""Share of the replies that must begin alike, so that one outlier does not empty the prefix."""

FIRST_TOKENS = 8
"""Tokens generated at first: replies usually differ early, and more follow only if they do not."""

Skips = Sequence[tuple[str, str]]
"""Pairs of a reasoning block's opening and its closed form."""


def common_prefix(replies: Sequence[str], share: float = SHARE) -> str:
    """The longest text that at least `share` of the replies begin with."""
    prefix = ""
    agreeing = list(replies)
    while True:
        following = Counter(reply[len(prefix)] for reply in agreeing if len(reply) > len(prefix))
        if not following:
            return prefix
        character, count = following.most_common(1)[0]
        if count < share * len(replies):
            return prefix
        prefix += character
        agreeing = [reply for reply in agreeing if reply.startswith(prefix)]


def close_reasoning(prefix: str, skips: Skips) -> str:
    """The closed form of a reasoning block that `prefix` opens; else `prefix` itself."""
    for opening, closed in skips:
        if prefix.startswith(opening):
            return closed
    return prefix


def closing_of_template(prompt_text: str, skips: Skips) -> str | None:
    """The text that closes a reasoning block opened by the template; None if none is open."""
    for opening, closed in skips:
        if prompt_text.rstrip().endswith(opening) and closed.startswith(opening):
            return closed[len(opening) :]
    return None


def find_response_prefix(model: Model, prompts: Prompts, skips: Skips) -> str:
    """Generate replies to `prompts` and return the prefix to use.

    A reasoning block that the template or the replies open is closed, and what replies share after
    that belongs to the prefix too.

    Args:
        prompts: Good and bad prompts of the direction splits, mixed.
        skips: Pairs of a reasoning block's opening and its closed form.
    """
    closing = closing_of_template(model.prompt_text(prompts[0]), skips)
    if closing is not None:
        return _trimmed(closing + _shared_beginning(model, prompts, closing))
    found = _shared_beginning(model, prompts, "")
    closed = close_reasoning(found.lstrip(), skips)
    if closed == found.lstrip():
        return _trimmed(found)
    return _trimmed(closed + _shared_beginning(model, prompts, closed))


def _trimmed(prefix: str) -> str:
    """Drop trailing spaces: in most tokenizers they belong to the next token; line ends do not."""
    return prefix.rstrip(" ")


def _shared_beginning(model: Model, prompts: Prompts, prefix: str) -> str:
    """The text that replies share after `prefix` if all are made to begin with it."""
    before, model.response_prefix = model.response_prefix, prefix
    length = min(FIRST_TOKENS, model.options.max_response_length)
    try:
        while True:
            # Openings of reasoning blocks are often special tokens, which decoding would drop.
            replies = model.get_responses_batched(
                prompts, max_new_tokens=length, skip_special_tokens=False
            )
            shared = common_prefix(replies)
            differ = sum(len(reply) > len(shared) for reply in replies)
            if differ >= SHARE * len(replies) or length >= model.options.max_response_length:
                return shared
            length = min(4 * length, model.options.max_response_length)
    finally:
        model.response_prefix = before
