"""Where settings come from, and what is said about keys that nobody knows.

pydantic-settings reads and merges the layers; this module adds the strictness:
a key that is not a setting is an error that names the nearest one, wherever it stood.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource
from pydantic_settings.sources import DotEnvSettingsSource

from heretic.config.fields import SettingsFields
from heretic.config.schema import FREE_TABLES, known_paths, table_model
from heretic.errors import SettingsError

ENVIRONMENT_PREFIX = "HERETIC_"
DEFAULT_CONFIG_FILE = "config.toml"

RESERVED_VARIABLES = frozenset({"HERETIC_SECRETS_DIR"})
"""Variables with the prefix that are no settings."""


@dataclass(frozen=True)
class Place:
    """A layer of settings, as people call it; `kind` fixes how a key is written there."""

    name: str
    kind: str

    def spell(self, path: tuple[str, ...]) -> str:
        """How the setting at `path` is written in this place."""
        if self.kind == "option":
            return "--" + ".".join(path).replace("_", "-")
        if self.kind == "variable":
            return ENVIRONMENT_PREFIX + "__".join(path).upper()
        return ".".join(path)


ARGUMENTS = Place("in the arguments of Settings()", "key")
COMMAND_LINE = Place("on the command line", "option")
ENVIRONMENT = Place("in the environment", "variable")
DOTENV = Place("in .env", "variable")


@dataclass
class Reading:
    """One construction of `Settings`: what to read, and what was read, highest layer first.

    Attributes:
        command_line: Settings from the command line, nested.
        config_file: TOML file in place of `config.toml` in the working directory.
        isolated: Whether nothing but the constructor's arguments counts.
        with_preset: Whether the preset that fits the model is looked for.
        layers: (place, values) pairs, so that an error can say where a value stood.
    """

    command_line: Mapping[str, Any] = field(default_factory=dict)
    config_file: Path | None = None
    isolated: bool = False
    with_preset: bool = True
    layers: list[tuple[Place, Mapping[str, Any]]] = field(default_factory=list)

    def where(self, path: tuple[str, ...]) -> tuple[Place, tuple[str, ...]] | None:
        """The highest layer that holds a value at `path`, with the part of it that is named."""
        for place, values in self.layers:
            found: Any = values
            named: tuple[str, ...] = ()
            for key in path:
                if not isinstance(found, Mapping) or key not in found:
                    break
                found = found[key]
                named = (*named, key)
            if named and (named == path or not isinstance(found, Mapping)):
                return place, named
        return None


READING: ContextVar[Reading | None] = ContextVar("heretic_settings_reading", default=None)


def unknown_key(
    path: tuple[str, ...], place: Place, *, written: str | None = None
) -> SettingsError:
    """The error for a key that is no setting, naming the nearest one as it is written there."""
    spelled = written or place.spell(path)
    known = [place.spell(candidate) for candidate in known_paths()]
    close = difflib.get_close_matches(spelled, known, n=1, cutoff=0.6)
    nearest = close or difflib.get_close_matches(spelled, known, n=1, cutoff=0.0)
    guess = f"Did you mean {nearest[0]}?" if close else f"The nearest known one is {nearest[0]}."
    return SettingsError(
        f"Unknown setting {spelled} {place.name}.",
        remedy=f"{guess} `heretic config` lists all settings.",
    )


def check_keys(
    values: Mapping[str, Any],
    place: Place,
    model: type[BaseModel] = SettingsFields,
    above: tuple[str, ...] = (),
) -> None:
    """Refuse keys that are no settings.

    Raises:
        SettingsError: A key is unknown; names the nearest known one and the place.
    """
    for key, value in values.items():
        path = (*above, key)
        if key not in model.model_fields:
            raise unknown_key(path, place)
        inner = table_model(model.model_fields[key].annotation)
        if inner is None:
            continue
        for element in value if isinstance(value, list | tuple) else [value]:
            if isinstance(element, Mapping):
                check_keys(element, place, inner, path)


def check_ready_made(
    values: Mapping[str, Any], place: Place, forbidden: Collection[str], kind: str
) -> None:
    """Refuse what ready-made settings must not hold.

    Args:
        forbidden: Settings that are not theirs to set.
        kind: What they are, in the plural.

    Raises:
        SettingsError: A key is forbidden; or as `check_keys`.
    """
    for key in forbidden:
        if key in values:
            raise SettingsError(f"Setting {key} {place.name}: {kind} cannot set it.")
    check_keys(values, place)


def no_such(kind: str, name: str, known: Collection[str], otherwise: str) -> SettingsError:
    """The error that there is nothing ready-made of that name.

    Args:
        kind: What it should have been.
        known: All there are.
        otherwise: How to name one's own.
    """
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"Did you mean {close[0]}? " if close else ""
    return SettingsError(
        f"There is no {kind} {name}.",
        remedy=f"{guess}There are {', '.join(known)}; {otherwise}.",
    )


def check_variables(names: Iterator[str], place: Place) -> None:
    """Refuse variables that start like ours and are none of ours; others are not our business.

    Raises:
        SettingsError: As `check_keys`.
    """
    for name in names:
        if not name.upper().startswith(ENVIRONMENT_PREFIX) or name.upper() in RESERVED_VARIABLES:
            continue
        path = tuple(name[len(ENVIRONMENT_PREFIX) :].lower().split("__"))
        fields: Mapping[str, FieldInfo] = SettingsFields.model_fields
        for key in path:
            if key not in fields:
                raise unknown_key(path, place, written=name.upper())
            annotation = fields[key].annotation
            if annotation is None or get_origin(annotation) is dict:
                break
            inner = None if get_origin(annotation) is tuple else table_model(annotation)
            fields = inner.model_fields if inner is not None else {}


def _variable_names(values: Mapping[str, str | None]) -> Iterator[str]:
    return (name for name in values)


class _LenientDecoding(EnvSettingsSource):
    """Lists and tables as JSON; text that is no JSON goes on to the validators as it is."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """The decoded value, or the text itself."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value

    def __call__(self) -> dict[str, Any]:
        """Values by setting."""
        values = super().__call__()
        for name in FREE_TABLES:
            if isinstance(values.get(name), dict):
                values[name] = decoded(values[name])
        return values


def decoded(values: Any) -> Any:
    """Text in tables of anything as JSON where it is JSON: its types are not known here."""
    if isinstance(values, Mapping):
        return {key: decoded(value) for key, value in values.items()}
    if not isinstance(values, str):
        return values
    try:
        return json.loads(values)
    except json.JSONDecodeError:
        return values


class EnvironmentSource(_LenientDecoding):
    """`HERETIC_*` variables, nested ones with `__`."""

    def __call__(self) -> dict[str, Any]:
        """Values by setting."""
        check_variables(_variable_names(self.env_vars), ENVIRONMENT)
        return super().__call__()


class DotenvSource(_LenientDecoding, DotEnvSettingsSource):
    """The same variables in `.env`."""

    def __call__(self) -> dict[str, Any]:
        """Values by setting."""
        check_variables(_variable_names(self.env_vars), DOTENV)
        return super().__call__()


class SecretsSource(_LenientDecoding):
    """The same names as files in the folder `HERETIC_SECRETS_DIR`, each holding one value."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        folder = os.environ.get("HERETIC_SECRETS_DIR")
        self.folder = Path(folder).expanduser() if folder else None
        super().__init__(settings_cls)

    @property
    def place(self) -> Place:
        """The folder."""
        return Place(f"in the secrets folder {self.folder}", "variable")

    def _load_env_vars(self) -> Mapping[str, str | None]:
        if self.folder is None:
            return {}
        if not self.folder.is_dir():
            raise SettingsError(
                f"The secrets folder {self.folder} does not exist.",
                remedy="Make it, or unset HERETIC_SECRETS_DIR.",
            )
        return {
            path.name.lower(): path.read_text(encoding="utf-8").strip()
            for path in sorted(self.folder.iterdir())
            if path.name.upper().startswith(ENVIRONMENT_PREFIX) and path.is_file()
        }

    def __call__(self) -> dict[str, Any]:
        """Values by setting."""
        check_variables(_variable_names(self.env_vars), self.place)
        return super().__call__()


def read_toml(path: Path) -> dict[str, Any]:
    """Settings in a TOML file.

    Raises:
        SettingsError: The file cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(f"The configuration file {path} cannot be read: {reason}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"The configuration file {path} is not UTF-8 text.") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"The configuration file {path} is not valid TOML: {error}.") from error


class GivenSource(PydanticBaseSettingsSource):
    """A layer that is at hand as a mapping: the command line, or a TOML file."""

    def __init__(
        self, settings_cls: type[BaseSettings], place: Place, values: Mapping[str, Any]
    ) -> None:
        super().__init__(settings_cls)
        self.place = place
        self.values = values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The value of one field."""
        del field
        return self.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Values by setting."""
        check_keys(self.values, self.place)
        return dict(self.values)


def toml_source(settings_cls: type[BaseSettings], config_file: Path | None) -> GivenSource:
    """The TOML layer: `config_file`, else `config.toml` in the working directory if it exists."""
    path = config_file or Path(DEFAULT_CONFIG_FILE)
    values = read_toml(path) if config_file is not None or path.exists() else {}
    return GivenSource(settings_cls, Place(f"in {path}", "key"), values)


class WholeSource(PydanticBaseSettingsSource):
    """A source that is chosen by what those above it say, and read whole."""

    def __init__(self, settings_cls: type[BaseSettings], reading: Reading) -> None:
        super().__init__(settings_cls)
        self.reading = reading

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Nothing: there is no single value to be had."""
        del field
        return None, field_name, False


class Recorded(PydanticBaseSettingsSource):
    """A source that also notes what it gave, for error messages."""

    def __init__(self, source: PydanticBaseSettingsSource, place: Place, reading: Reading) -> None:
        super().__init__(source.settings_cls)
        self.source = source
        self.place = place
        self.reading = reading
        # pydantic-settings keeps what each source gave under this name
        self.__name__ = place.name

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The value of one field, from the source."""
        return self.source.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        """What the source gives."""
        values = self.source()
        self.reading.layers.append((self.place, values))
        return values
