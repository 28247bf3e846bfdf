"""Texts of any origin, made fit to be shown: on the terminal, in the log, on a model's card."""

from __future__ import annotations

import json
import re
from typing import Any

from heretic.system.secrets import masked

_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"  # controls, halves of characters
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction
    r"\u2028\u2029\u180e\u200b\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb"  # hidden
    r"\U000e0000-\U000e007f]"  # invisible doubles of ASCII
)
"""Characters that command a terminal, change the order of what is shown, break lines, or hide. The
joiners U+200C and U+200D stay: Persian, Hindi and many emoji are written with them."""


_UNSAFE_OR_SPACE = re.compile(rf"{_UNSAFE.pattern}|[^\S ]")


def safe(text: str) -> str:
    """`text` without secrets, and without characters that could deceive or command a terminal.

    Line ends and tabs stay, carriage returns go; every other control character, bidirectional
    control or invisible character becomes U+FFFD. Markup is not escaped: callers hand the result to
    `rich.text.Text`, or write it unchanged.
    """
    text = masked(text)
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\r", "")
    return _UNSAFE.sub("\ufffd", text)


def safe_line(text: str) -> str:
    """`safe`, in one line: for the log and for tables, where a line break could forge an entry."""
    return " ".join(safe(text).split())


def clip(text: str, limit: int) -> str:
    """`text` made safe and cut to at most `limit` characters, with an ellipsis if cut."""
    text = safe(text).strip()
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def clip_middle(text: str, limit: int) -> str:
    """As `clip`, but cut in the middle: of a name both ends tell it from others."""
    text = safe(text).strip()
    if len(text) <= limit:
        return text
    left = (limit - 1) // 2
    return f"{text[:left]}…{text[len(text) - (limit - 1 - left) :]}"


def count_of(done: int, total: int | None) -> str:
    """A count with what was asked for, `3 of 14`; without it where that is unknown or exceeded."""
    return str(done) if total is None or done > total else f"{done} of {total}"


def counted(count: int, thing: str) -> str:
    """A number of things: `1 trial`, `3 trials`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def visible(text: str) -> str:
    r"""`text` in one line, with every character that is not seen shown: for tokens.

    A space is `·`, a line break `\n`; what `safe` replaces is written as an escape (`\u202e`).
    """
    escaped = _UNSAFE_OR_SPACE.sub(lambda found: json.dumps(found[0])[1:-1], masked(text))
    return escaped.replace(" ", "·")


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON with letters of all scripts; what `safe` replaces is escaped, so nothing is lost."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)


def format_duration(seconds: float) -> str:
    """A duration as people say it: `7s`, `2m 5s`, `3h 20m`."""
    whole = max(round(seconds), 0)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"


def bytes_text(count: float) -> str:
    """A number of bytes in decimal units, e.g. `1.2 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            value = count / size
            return f"{value:.1f} {unit}" if value < 100 and unit == "GB" else f"{value:.0f} {unit}"
    return f"{count / 1e3:.0f} kB"
