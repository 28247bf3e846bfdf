"""Durations as users write them."""

from __future__ import annotations

import re
from typing import Any

_COUNT = r"\d{1,9}(?:\.\d{1,9})?"
_PARTS = re.compile(
    rf"(?:(?P<h>{_COUNT}) *h)? *(?:(?P<m>{_COUNT}) *m(?:in)?)? *(?:(?P<s>{_COUNT}) *s)?",
    re.IGNORECASE | re.ASCII,
)
_ALONE = re.compile(rf"(?P<s>{_COUNT})", re.ASCII)
_SECONDS = {"h": 3600, "m": 60, "s": 1}


def seconds_in(text: str) -> float:
    """The seconds that a duration such as `90s`, `30m`, `1h30m` or `5400` means.

    Raises:
        ValueError: It is not a duration, or not above 0.
    """
    found = _ALONE.fullmatch(text.strip()) or _PARTS.fullmatch(text.strip())
    parts = {} if found is None else found.groupdict(default="0")
    seconds = sum(_SECONDS[unit] * float(count) for unit, count in parts.items())
    if seconds <= 0:
        raise ValueError("should be a time above 0, such as 90s, 30m, 2h or 1h30m")
    return seconds


def checked_duration(value: Any) -> Any:
    """A duration as text, unchanged; a number means seconds. For the validation of settings.

    Raises:
        ValueError: It is not a duration.
    """
    if value is None:
        return None
    text = f"{value:g}" if isinstance(value, float) else str(value)
    seconds_in(text)
    return text
