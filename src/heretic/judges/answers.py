"""Read the verdict from a judge's answer."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from heretic.judges.records import Usage, Verdict
from heretic.system.documents import parse_json

LONGEST_REASON = 500
"""Characters of a reason that are kept at most."""

MOST_TOKENS = 10**9
"""Tokens of one request or answer; a larger number is not a count."""

WORK = 16
"""How often each character of an answer is read at most, on average, in the search for objects."""

MOST_BEGINNINGS = 1000
"""Beginnings of objects that are tried: each error costs the parser a look at all lines before."""

_BEGINNING = re.compile(r"\{(?=\s*[\"}])")
_REASONED = re.compile(r"</think(?:ing)?>")


class UnreadableAnswerError(ValueError):
    """An answer holds no verdict, or several different ones; the message says what is wrong."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Tokens(BaseModel):
    prompt_tokens: int = Field(ge=0, le=MOST_TOKENS)
    completion_tokens: int = Field(ge=0, le=MOST_TOKENS)


class _Metered(BaseModel):
    usage: _Tokens


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


def usage(body: str) -> Usage:
    """The usage of one chat completion: one request, and its tokens if the server counts them."""
    try:
        tokens = _Metered.model_validate_json(body).usage
    except ValidationError:
        return Usage(requests=1, unmetered=1)
    return Usage(
        requests=1,
        prompt_tokens=tokens.prompt_tokens,
        completion_tokens=tokens.completion_tokens,
    )


def content(body: str) -> str:
    """The text of a chat completion.

    Raises:
        UnreadableAnswerError: The body is not a chat completion, the answer was cut short, or the
            judge declined.
    """
    try:
        choice = _Completion.model_validate_json(body).choices[0]
    except ValidationError as error:
        raise UnreadableAnswerError("the server's answer is not a chat completion") from error
    if choice.finish_reason == "length":
        raise UnreadableAnswerError("the answer was cut short by max_tokens")
    if choice.message.refusal or choice.finish_reason == "content_filter":
        raise UnreadableAnswerError("the judge declines to judge")
    return choice.message.content or ""


def verdict(text: str, labels: Collection[str]) -> Verdict:
    """The one verdict in a judge's answer.

    Text up to the end of a reasoning block, code fences, and words around the JSON object are
    ignored. A label alone is a verdict too. Two objects with different labels are an error, because
    one of them may be quoted from the reply.

    Args:
        text: The judge's answer.
        labels: The labels that a verdict may have; compared without regard to case.

    Raises:
        UnreadableAnswerError: The answer holds no verdict, or several different ones.
    """
    text = _REASONED.split(text)[-1].strip()
    if text.startswith("<think"):
        raise UnreadableAnswerError("the answer ends before its reasoning does")
    known = {label.strip().casefold(): label for label in labels}
    alone = known.get(text.strip("`'\"*. \n").casefold())
    if alone is not None:
        return Verdict(alone)
    found: dict[str, str] = {}
    for table in _objects(text):
        label = table.get("label")
        name = known.get(label.strip().casefold()) if isinstance(label, str) else None
        if name is not None:
            found[name] = str(table.get("reason") or "")[:LONGEST_REASON]
    if len(found) != 1:
        what = "holds different verdicts" if found else "holds no verdict"
        raise UnreadableAnswerError(f"the answer {what}")
    ((name, reason),) = found.items()
    return Verdict(name, reason=reason)


def stored(text: str, labels: Collection[str]) -> Verdict | None:
    """Read a verdict that `storable` wrote; None if the text is damaged."""
    try:
        label, reason = parse_json(text)
    except (ValueError, TypeError):
        return None
    if not isinstance(label, str) or label not in labels or not isinstance(reason, str):
        return None
    return Verdict(label, reason=reason)


def storable(found: Verdict) -> str:
    """A verdict as text for the cache."""
    return json.dumps([found.label, found.reason])


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects in a text, except those with a duplicate key.

    Raises:
        UnreadableAnswerError: It holds so many beginnings of objects, or so deep ones, that reading
            them all would take far longer than reading the text.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_without_twins, strict=False)
    left, tries = WORK * len(text) + 1000, 0
    beginning = _BEGINNING.search(text)
    while beginning:
        position, tries = beginning.start(), tries + 1
        try:
            table, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            end = position + 1
            left -= error.pos - position
        except ValueError:  # a duplicate key, or an integer of thousands of digits
            end = position + 1
            left -= len(text) - position
        except RecursionError as error:
            raise UnreadableAnswerError("the answer is nested too deeply") from error
        else:
            yield table
        if left < 0 or tries > MOST_BEGINNINGS:
            raise UnreadableAnswerError("the answer is not the JSON object that was asked for")
        beginning = _BEGINNING.search(text, end)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key occurs twice")
    return table
