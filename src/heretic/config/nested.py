"""Nested tables of plain values: read from TOML, decoded from text, merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heretic.errors import SettingsError
from heretic.system import documents


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both tables as one. Tables inside are merged key by key; of all else, `above` wins."""
    both = dict(below)
    for name, value in above.items():
        old = both.get(name)
        tables = isinstance(old, Mapping) and isinstance(value, Mapping)
        both[name] = merged(old, value) if tables else value  # type: ignore[arg-type]
    return both


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set the value at `path`, making the tables on the way to it.

    Where something on the way has a value that is not a table, that value stays.
    """
    inner: Any = tree
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            return
    inner[path[-1]] = value


def decoded(value: Any) -> Any:
    """Text as JSON where it is JSON, else as it is; in a table, the texts that it holds."""
    if isinstance(value, Mapping):
        return {key: decoded(inner) for key, inner in value.items()}
    if not isinstance(value, str):
        return value
    try:
        return documents.parse_json(value)
    except ValueError:
        return value


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        SettingsError: The file cannot be read or is not TOML.
    """
    return documents.read_toml(path, kind=SettingsError, what=f"The configuration file {path}")
