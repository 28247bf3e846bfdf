"""Finds a model's chat template: in its tokenizer or in files beside it; one of several by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from heretic.errors import ModelError, SettingsError
from heretic.model.source import ModelSource, origin
from heretic.system.documents import read_json
from heretic.system.files import expanded

BESIDE = ("chat_template.json", "processor_config.json", "preprocessor_config.json")
"""Files of processors that may hold a template, which tokenizers do not read."""

_KEY = "chat_template"


def find_template(source: ModelSource, tokenizer: Any, name: str | None) -> str | None:
    """The text of the chat template to use; None if the model has none.

    Args:
        name: The setting `chat_template`: which of several templates. None means the one called
            `default`, or the only one.

    Raises:
        ModelError: There are several templates, and none of them is the default; or a file with a
            template is damaged.
        SettingsError: No template has that name.
    """
    named = _by_name(tokenizer.chat_template, source.model) or _beside(source)
    names = ", ".join(sorted(named))
    if name is not None:
        if name not in named:
            has = f"those of {source.model} are {names}" if named else f"{source.model} has none"
            raise SettingsError(
                f"There is no chat template {name!r}: {has}.",
                remedy="Set chat_template to one of them, or leave it out.",
            )
        return named[name]
    if len(named) == 1:
        return next(iter(named.values()))
    if named and "default" not in named:
        raise ModelError(
            f"{source.model} has several chat templates, and none is the default: {names}.",
            remedy="Choose one: --chat-template NAME.",
        )
    return named.get("default")


def _beside(source: ModelSource) -> dict[str, str]:
    """The templates in a processor's files, which are looked for where the tokenizer has none."""
    place, arguments = origin(source)
    folder = expanded(place)
    for file in BESIDE:
        if folder.is_dir():
            found: str | None = str(folder / file)
        else:
            found = cached_file(
                place,
                file,
                revision=arguments["revision"],
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        if found is None or not Path(found).is_file():
            continue
        content = read_json(Path(found), kind=ModelError, strict=False)
        templates = _by_name(content.get(_KEY) if isinstance(content, Mapping) else None, found)
        if templates:
            return templates
    return {}


def _by_name(value: Any, where: str) -> dict[str, str]:
    """Templates by name, from a text, a mapping, or a list of objects with `name` and `template`.

    Raises:
        ModelError: It is none of these.
    """
    if not value:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        rows = (
            value if isinstance(value, Mapping) else {row["name"]: row["template"] for row in value}
        )
        if all(isinstance(text, str) for text in (*rows, *rows.values())):
            return dict(rows)
    except (TypeError, KeyError):
        pass
    raise ModelError(
        f"The chat template of {where} is not text: {json.dumps(value, default=str)[:80]}.",
        remedy="Put the template's text under chat_template.",
    )
