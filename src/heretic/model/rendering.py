"""Checks that what the model reads holds the prompts: their words, and what tells them apart.

A template or a tokenizer that drops something makes no error by itself: figures would be computed,
and mean nothing.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from heretic.errors import PromptError
from heretic.prompts import Prompt

if TYPE_CHECKING:
    from heretic.model.reading import PromptReader

_WORD = re.compile(r"\w+")
_SWITCH = re.compile(r"/(no_?)?think\b", re.IGNORECASE)
"""Commands to a template such as `/no_think`, which it may take out of the text."""

_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_LONGEST_SHOWN = 300


def check_prompts(reader: PromptReader, sets: Mapping[str, Sequence[Prompt]]) -> list[str]:
    """Check that template and tokenizer keep the prompts' words.

    Args:
        sets: Prompts by the name of their set; `good` and `bad` must stay different.

    Returns:
        Warnings: a system prompt that the template leaves out, words that the tokenizer lacks.

    Raises:
        PromptError: A prompt's words, or the system prompt of its set, are not in the text that the
            model gets; most of a prompt's words become no tokens; or the template makes equal texts
            of different prompts.
    """
    texts = {
        prompt: reader.prompt_text(prompt)
        for prompt in dict.fromkeys(prompt for rows in sets.values() for prompt in rows)
    }
    for prompt, text in texts.items():
        _check_words(reader, prompt, text)
    warnings = _system_warnings(reader, texts)
    rows = dict(zip(texts, reader.renderer.token_ids(list(texts.values())), strict=True))
    _check_differences(rows, texts, sets)
    return [*warnings, *_token_warnings(reader, rows)]


def check_message(reader: PromptReader, message: str, text: str) -> None:
    """Check that the rendered text holds a message of a chat.

    Raises:
        PromptError: Words of it are missing.
    """
    _check_words(reader, Prompt(message), text)


def lost_words(prompt: str, text: str) -> list[str]:
    """Words of a prompt that a text does not hold, in order.

    Case does not count, nor how quotation marks and the like are escaped. A prompt without words
    is compared by its characters.
    """
    words = _WORD.findall(_SWITCH.sub(" ", prompt).casefold())
    if not words:
        words = [] if _SWITCH.search(prompt) else prompt.casefold().split()
    found = text.casefold()
    known = set(_WORD.findall(found))
    lost = [word for word in words if word not in known and word not in found]
    if lost:
        found += html.unescape(found) + _ESCAPED.sub(lambda code: chr(int(code[1], 16)), text)
        found = found.casefold()
    return [word for word in lost if word not in found]


def _check_words(reader: PromptReader, prompt: Prompt, text: str) -> None:
    lost = lost_words(prompt.user, text)
    if lost:
        raise PromptError(
            f"The chat template of {reader.options.model} leaves out {_listed(lost)} of the prompt "
            f"{_short(prompt.user)!r}; it makes {_short(text)!r} of it.",
            remedy="Mend the template, choose another by chat_template, or change the prompt.",
        )


def _system_warnings(reader: PromptReader, texts: Mapping[Prompt, str]) -> list[str]:
    """A warning if the general system prompt is left out.

    Raises:
        PromptError: The system prompt of a single set is left out, which the set is made by.
    """
    left_out = {prompt.system for prompt, text in texts.items() if _lacks_system(prompt, text)}
    general = reader.options.system_prompt
    for system in left_out - {general}:
        raise PromptError(
            f"The chat template of {reader.options.model} leaves out the system prompt of a prompt "
            f"set: {_short(system or '')!r}.",
            remedy="Put it into the prompts themselves: set `prefix` instead of `system_prompt`.",
        )
    if general not in left_out:
        return []
    name = reader.options.model
    warning = f"The chat template of {name} has no place for a system prompt: prompts have none"
    return [warning]


def _lacks_system(prompt: Prompt, text: str) -> bool:
    """Whether most words of the system prompt are missing; some of them may be switches."""
    words = _WORD.findall(_SWITCH.sub(" ", prompt.system or ""))
    return bool(words) and 2 * len(lost_words(prompt.system or "", text)) > len(words)


def _token_warnings(reader: PromptReader, rows: Mapping[Prompt, list[int]]) -> list[str]:
    """A warning if the tokenizer has no tokens for some words.

    Raises:
        PromptError: It has none for most words of a prompt.
    """
    concerned, example = 0, ""
    for prompt, row in rows.items():
        words = _letters(_SWITCH.sub(" ", prompt.user)).split()
        read = "".join(_letters(reader.decode(row, skip_special_tokens=False)).split())
        lost = [word for word in words if word not in read]
        if 2 * len(lost) > len(words):
            raise PromptError(
                f"The tokenizer of {reader.options.model} has no tokens for {_listed(lost)} of the "
                f"prompt {_short(prompt.user)!r}.",
                remedy="Use prompts in a script that the model knows, or check its tokenizer.",
            )
        if lost:
            concerned, example = concerned + 1, example or lost[0]
    if not concerned:
        return []
    warning = (
        f"The tokenizer of {reader.options.model} has no tokens for words of {concerned} prompts, "
        f"such as {example!r}: the model does not see them"
    )
    return [warning]


def _letters(text: str) -> str:
    """A text without case, accents and signs, which tokenizers may normalise."""
    plain = unicodedata.normalize("NFKD", text.casefold()).casefold()
    kept = (" " if not c.isalnum() else c for c in plain if not unicodedata.combining(c))
    return "".join(kept)


def _check_differences(
    rows: Mapping[Prompt, list[int]],
    texts: Mapping[Prompt, str],
    sets: Mapping[str, Sequence[Prompt]],
) -> None:
    """Refuse prompts that are all the same to the model, or the same in both kinds.

    Raises:
        PromptError: They are.
    """
    distinct = {tuple(row) for row in rows.values()}
    if len(rows) > 1 and len(distinct) == 1:
        first = next(iter(texts.values()))
        raise PromptError(
            f"All prompts are the same text for the model: {_short(first)!r}.",
            remedy="Check the chat template and the tokenizer; chat_template chooses another.",
        )
    good, bad = ({tuple(rows[p]) for p in sets.get(name, ())} for name in ("good", "bad"))
    if good == bad and set(sets.get("good", ())) != set(sets.get("bad", ())):
        raise PromptError(
            "The good and the bad prompts are the same texts for the model.",
            remedy="They must differ in what the chat template writes: see prefix and suffix.",
        )


def _listed(words: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(words))
    more = f" and {len(distinct) - 5} more words" if len(distinct) > 5 else ""
    return ", ".join(map(repr, distinct[:5])) + more


def _short(text: str) -> str:
    half = _LONGEST_SHOWN // 2
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:half]} ... {text[-half:]}"
