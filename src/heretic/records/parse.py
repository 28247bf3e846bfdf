"""Values read from disk or from other programs: each has the type that the reader relies on.

All functions take a value and its name, and raise ValueError with both if the value does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

from heretic.records.choices import Optimization

Choice = TypeVar("Choice", bound=str)
_SHOWN = 60


def number(value: object, name: str) -> float:
    """A finite number, as it is: an integer stays one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise wrong(value, name, "a finite number")
    return value


def whole(value: object, name: str, least: int | None = None, most: int | None = None) -> int:
    """A whole number, at least `least`, at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(value, name, "a whole number")
    if least is not None and value < least:
        raise wrong(value, name, f"at least {least}")
    if most is not None and value > most:
        raise wrong(value, name, f"at most {most}")
    return value


def text(value: object, name: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise wrong(value, name, "text")
    return value


def flag(value: object, name: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong(value, name, "true or false")
    return value


def table(value: object, name: str) -> dict[str, Any]:
    """A mapping with strings as keys, as a dict."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise wrong(value, name, "a table")
    return dict(value)


def rows(value: object, name: str) -> list[Any]:
    """A list."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise wrong(value, name, "a list")
    return list(value)


def numbers(value: object, name: str) -> tuple[float, ...]:
    """A list of finite numbers or of booleans, each as it is."""
    found = tuple(rows(value, name))
    if not all(isinstance(one, int | float) and _finite(one) for one in found):
        raise wrong(value, name, "a list of finite numbers")
    return found


def one_of(value: object, name: str, choices: Sequence[Choice]) -> Choice:
    """One of the choices."""
    for choice in choices:
        if value == choice:
            return choice
    raise wrong(value, name, f"one of {', '.join(choices)}")


def optimization(value: object, name: str) -> Optimization:
    """What the search does with a score."""
    choices: tuple[Literal["minimize", "maximize", "none"], ...] = get_args(Optimization)
    return one_of(value, name, choices)


def only(value: Mapping[str, Any], name: str, known: Sequence[str]) -> None:
    """Raise if a table has keys other than these."""
    for key in value:
        if key not in known:
            raise ValueError(f"{name} has the unknown key {_short(key)}")


def wrong(value: object, name: str, expected: str) -> ValueError:
    """The error for a value that does not fit."""
    return ValueError(f"{name} is {_short(value)}, not {expected}")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _short(value: object) -> str:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; endless nesting
        shown = type(value).__name__
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
