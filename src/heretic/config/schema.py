"""The settings as data, for all who ask."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from heretic.config.fields import SettingsFields


def reproducible_names() -> frozenset[str]:
    """The settings a reproduction file records and may set: those that change scores.

    Remote code, places on disk, actions and limits of this machine are not among them.
    """
    return frozenset(
        name
        for name, info in SettingsFields.model_fields.items()
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("scores")
    )


FREE_TABLES = ("scorer", "chat_template_kwargs")
"""Settings that are tables of anything."""


def table_model(annotation: Any) -> type[BaseModel] | None:
    """The model behind a field that is a table, or behind the elements of a list of tables."""
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    if NoneType in get_args(annotation) and len(kinds) == 1:
        return table_model(kinds[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is tuple:
        return table_model(get_args(annotation)[0])
    return None


def known_paths(
    model: type[BaseModel] = SettingsFields, above: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """The path of every setting, tables before what they hold."""
    for name, info in model.model_fields.items():
        yield (*above, name)
        inner = table_model(info.annotation)
        if inner is not None:
            yield from known_paths(inner, (*above, name))
