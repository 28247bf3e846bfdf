"""Data-set tables of the other tool: alone, or in a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heretic.config.foreign.convert import Converted, Document, NoCounterpartError

SAME_KEYS = (
    "dataset",
    "config",
    "commit",
    "split",
    "column",
    "system_prompt",
    "residual_plot_label",
    "residual_plot_color",
)
"""Keys of a data set that mean the same in both tools."""

SPACED = "a space is put between it and the prompts"


def data_sets(value: Any, document: Document) -> Converted:
    """A prompt set: a table, or a list of tables."""
    del document
    tables = value if isinstance(value, list) else [value]
    if not tables or not all(isinstance(table, Mapping) for table in tables):
        raise NoCounterpartError("it is neither a table of a data set nor a list of such tables")
    found = [_data_set(table) for table in tables]
    remarks = dict.fromkeys(remark for one in found for remark in one.remarks)
    values = [one.value for one in found]
    return Converted(values if isinstance(value, list) else values[0], tuple(remarks))


def _data_set(table: Mapping[str, Any]) -> Converted:
    given = {key: value for key, value in table.items() if value is not None}
    values = {key: given[key] for key in SAME_KEYS if key in given}
    remarks = [f"unknown key {key}" for key in given if key not in (*SAME_KEYS, *_TEXTS)]
    if "dataset" in given and "split" not in given:
        values["split"] = "train"  # a file of texts is read as a whole there
    if str(given.get("dataset")).lower().endswith(".txt") and "column" in values:
        del values["column"]
        remarks.append("`column` is left out: lines of text have none")
    for key, spaced in _TEXTS.items():
        if given.get(key):
            values[key] = spaced(given[key])
            remarks += [f"{key}: {SPACED}"] if values[key] != given[key] else []
    return Converted(values, tuple(remarks))


def _before(text: Any) -> Any:
    return f"{text} " if isinstance(text, str) and not text[-1:].isspace() else text


def _after(text: Any) -> Any:
    return f" {text}" if isinstance(text, str) and not text[:1].isspace() else text


_TEXTS = {"prefix": _before, "suffix": _after}
"""Its own files end a prefix with a colon, without the space that a prompt needs after it."""
