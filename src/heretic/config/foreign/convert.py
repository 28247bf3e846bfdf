"""Values of another tool's settings as values of ours: a function for each way to convert one.

Each takes the value and the whole document, and raises `NoCounterpartError` where there is no such
value here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]


class NoCounterpartError(Exception):
    """A value that has no counterpart; the message is the reason, and what to use instead."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A value of ours.

    Attributes:
        value: None where nothing has to be set, because this tool does so by itself.
        remarks: What to know about this value, besides what the rule says of all.
    """

    value: Any
    remarks: tuple[str, ...] = ()


Converter = Callable[[Any, Document], Converted]


def same(value: Any, document: Document) -> Converted:
    """The value as it is."""
    del document
    return Converted(value)


def nothing(value: Any, document: Document) -> Converted:
    """No value: what the setting asks for is what this tool does."""
    del value, document
    return Converted(None)


def one_of(*choices: str) -> Converter:
    """The value as it is, if it is one of those that mean the same here."""

    def checked(value: Any, document: Document) -> Converted:
        del document
        if value not in choices:
            raise NoCounterpartError(
                f"the value {value!r} means nothing here; there are {', '.join(choices)}"
            )
        return Converted(value)

    return checked


def row_normalization(value: Any, document: Document) -> Converted:
    """Whether row norms are kept, as the variant of the edit."""
    del document
    if not isinstance(value, bool):
        raise NoCounterpartError(f"{value!r} is neither true nor false")
    return Converted("full" if value else "none")


def first_row(value: Any, document: Document) -> Converted:
    """Row 0 of the front, which is the one with the fewest refusals."""
    del document
    if isinstance(value, int) and not isinstance(value, bool) and value == 0:
        return Converted(0)
    raise NoCounterpartError(
        f"row {value!r} was chosen on the front of one search, and another search has another "
        "front; `trial_index` also takes the names fewest, knee, least-damage"
    )


def if_run_exists(value: Any, document: Document) -> Converted:
    """What to do with a run that exists; `continue` is what happens if nothing is set."""
    del document
    if value == "continue":
        raise NoCounterpartError(
            "here `continue` is an error where no such run exists. Unset, a run that exists goes "
            "on (a terminal asks first), and else one begins"
        )
    return one_of("restart", "quit")(value, {})


def response_prefix(value: Any, document: Document) -> Converted:
    """The beginning of every reply; `auto` is a word of ours."""
    del document
    if value == "auto":
        raise NoCounterpartError("the text `auto` asks this tool to find a prefix")
    return Converted(value)


def shard_size(value: Any, document: Document) -> Converted:
    """A size as text; a number is bytes."""
    del document
    if isinstance(value, int) and not isinstance(value, bool):
        return Converted(f"{value / 1000:.3f}".rstrip("0").rstrip(".") + "KB")
    return Converted(value)


def skips(value: Any, document: Document) -> Converted:
    """Pairs of the beginning of a reasoning block and the closed block."""
    del document
    if not _are_pairs(value):
        raise NoCounterpartError("it is not a list of pairs of texts, as chain_of_thought_skips is")
    closed = [(first, last if last.startswith(first) else first + last) for first, last in value]
    return Converted([list(pair) for pair in closed])


def _are_pairs(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(
        isinstance(pair, list) and [type(part) for part in pair] == [str, str] for pair in value
    )


_APOSTROPHES = str.maketrans({"*": None, "\u2019": "'", "\u2018": "'", "\u02bc": "'"})


def markers(value: Any, document: Document) -> Converted:
    """Texts by which a reply is counted, in the form that they have in a normalised reply.

    `heretic.scorers.keyword` looks for them in replies of lower case without asterisks.
    """
    del document
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise NoCounterpartError("it is not a list of texts")
    plain = [re.sub(r"\s+", " ", text.lower().translate(_APOSTROPHES)) for text in value]
    lost = [text for text, form in zip(value, plain, strict=True) if not form.strip()]
    kept = list(dict.fromkeys(form for form in plain if form.strip()))
    if not kept:
        raise NoCounterpartError("no text is left: asterisks and white space are not looked at")
    remarks = []
    if any(form != text for text, form in zip(value, plain, strict=True) if text not in lost):
        remarks.append("in lower case, with plain apostrophes and without asterisks")
    if lost:
        remarks.append(f"left out, as asterisks are not looked at: {', '.join(map(repr, lost))}")
    return Converted(kept, tuple(remarks))


def first_model(value: Any, document: Document) -> Converted:
    """The first of several judges."""
    del document
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise NoCounterpartError("it is not a list of names")
    rest = ", ".join(map(str, value[1:]))
    return Converted(value[0], (f"left out: {rest}",) if rest else ())


_PRICES = ("price_in", "price_out")


def prices(value: Any, document: Document) -> Converted:
    """The prices of the first judge's million tokens: of those it reads, and of those it writes."""
    names = document.get("models")
    name = names[0] if isinstance(names, list) and names else None
    both = value.get(name) if isinstance(value, Mapping) and isinstance(name, str) else None
    if not isinstance(both, list) or len(both) != len(_PRICES):
        raise NoCounterpartError("it has no pair of prices for the first of `models`")
    return Converted(dict(zip(_PRICES, both, strict=True)))
