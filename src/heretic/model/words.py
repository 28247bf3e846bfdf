"""The tokens of a single word."""

from __future__ import annotations

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
