"""Words as tokens, and tokens as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def word_tokens(tokenizer: Any, word: str) -> tuple[int, ...]:
    """Ids of the tokens that are this word alone, ascending.

    Case and white space around it do not count: `Yes`, `yes`, ` Yes` and so on. A spelling of
    several tokens is left out, since its first token begins other words too.

    Args:
        word: In ASCII letters.
    """
    wanted = word.casefold()
    candidates = [
        number for text, number in tokenizer.get_vocab().items() if wanted in text.casefold()
    ]
    return tuple(
        sorted(
            number
            for number in candidates
            if tokenizer.decode([number]).strip().casefold() == wanted
        )
    )


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token within a text: a space that it begins with is kept.

    A token that is a part of a character's bytes is given in the tokenizer's own spelling.
    """
    before = _plain_token(tokenizer)
    start = tokenizer.decode([before], clean_up_tokenization_spaces=False)
    found = []
    for number in ids:
        text = tokenizer.decode([before, number], clean_up_tokenization_spaces=False)
        text = text.removeprefix(start) if text.startswith(start) else tokenizer.decode([number])
        # A replacement character stands for bytes that are no character.
        found.append(str(tokenizer.convert_ids_to_tokens(number)) if "\ufffd" in text else text)
    return found


def _plain_token(tokenizer: Any) -> int:
    """A token after which others are decoded as within a text."""
    ids: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    return ids[-1]
