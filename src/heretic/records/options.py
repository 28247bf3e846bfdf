"""Options of one module: a frozen record of the settings that it reads, and of no others."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TypeVar

Options = TypeVar("Options")


def options_of(kind: type[Options], source: object) -> Options:
    """A record of options, filled from a larger one.

    Args:
        kind: A dataclass.
        source: Anything that has an attribute for each of its fields, such as `Settings`.

    Raises:
        AttributeError: The source lacks a field.
    """
    assert is_dataclass(kind)
    return kind(**{field.name: getattr(source, field.name) for field in fields(kind)})
