"""Makes settings files of ours out of those of `heretic-llm`, another project.

Reading such a file as it is, by `--config`, does the same (`heretic.config.sources`); here every
value is validated, so that what is written can be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.config.foreign.lines import title
from heretic.config.foreign.translate import Translation, read_document, translate, without
from heretic.config.reference import toml_value
from heretic.config.schema import SettingsLayer, SettingsOrigin, settings_of
from heretic.config.settings import Settings
from heretic.errors import SettingsError
from heretic.system.display import safe

if TYPE_CHECKING:
    from tomlkit import TOMLDocument


def migrate(file: Path) -> Translation:
    """A file of the other tool as settings of ours, all of which are valid.

    Raises:
        SettingsError: It cannot be read, or is a reproduction file of ours.
    """
    found = translate(read_document(file), file)
    while (error := _first_error(found.values)) is not None:
        found = without(found, *error)
    return found


_TOGETHER = ("scorer", "scorers", "goal", "search")
"""Settings that may contradict each other, those first that are given up first."""


def _first_error(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """A setting that is not valid, alone or beside the others, and why; None if all are."""
    origin = SettingsOrigin("in that file", "key")
    for name in values:
        if name == "scorer":  # its tables belong to `scorers`
            continue
        try:
            Settings.from_layers([SettingsLayer(origin, {name: values[name]})])
        except SettingsError as error:
            return name, error.message.rstrip(".")
    try:
        Settings.from_layers([SettingsLayer(origin, values)])
    except SettingsError as error:
        suspects = [name for name in _TOGETHER if name in values] or [*values]
        return suspects[0], error.message.rstrip(".")
    return None


def as_toml(translation: Translation, file: Path) -> str:
    """The settings as a TOML file, in the order of our settings."""
    import tomlkit

    document = tomlkit.document()
    what = title(translation)
    document.add(tomlkit.comment(f"{what[:1].upper()}{what[1:]},"))
    document.add(tomlkit.comment(f"converted by `heretic migrate {safe(file.name)}`."))
    document.add(tomlkit.nl())
    tables = []
    for setting in settings_of():
        if setting.name not in translation.values:
            continue
        value = translation.values[setting.name]
        if setting.kind in ("table", "list of tables", "open table"):
            tables.append((setting.name, value))
        else:
            document.add(setting.name, toml_value(value))
    for name, value in tables:
        _add_tables(document, name, value)
    return tomlkit.dumps(document)


def _add_tables(document: TOMLDocument, name: str, value: Any) -> None:
    """Add a table, or a list of tables, after all plain values."""
    import tomlkit

    document.add(tomlkit.nl())
    if isinstance(value, Mapping):
        document.add(name, tomlkit.item(dict(value)))
        return
    array = tomlkit.aot()
    for element in value:
        table = tomlkit.table()
        table.update(element)
        array.append(table)
    document.add(name, array)
