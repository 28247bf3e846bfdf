"""Ready configurations for behaviours other than refusal: contrasting prompts, and scorers.

Each is a folder in `heretic/behaviors`: `config.toml` holds settings as users write them, and the
prompt files lie beside it. Everything the user sets overrides a ready configuration, which in turn
overrides the preset of the model's family.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import heretic
from heretic.config.nested import read_toml
from heretic.config.schema import SettingsLayer, SettingsOrigin, check_ready_made, no_such
from heretic.system.files import expanded

OWN_FOLDER = Path(heretic.__file__).with_name("behaviors")
FILE_NAME = "config.toml"
ABOUT = "about"
"""Key beside the settings: a description in one line."""

FORBIDDEN = ("model", "model_commit", "evaluate_model", "preset", "behavior")
"""Settings that decide which files are read. Settings that are consents are refused as well; but a
behaviour that the user names may bring scorer files."""


@dataclass(frozen=True, slots=True)
class Behavior:
    """One ready configuration.

    Attributes:
        name: The name of its folder, or of the user's file without the suffix.
        file: The TOML file.
        settings: Values as in the TOML file; paths of files beside it are absolute.
        about: A description in one line.
    """

    name: str
    file: Path
    settings: Mapping[str, Any]
    about: str = ""

    @property
    def origin(self) -> SettingsOrigin:
        """Where errors say that its settings stand."""
        return SettingsOrigin(f"in {self.file}", "key")


def names() -> list[str]:
    """Names of the configurations that come with Heretic, sorted."""
    return sorted(path.parent.name for path in OWN_FOLDER.glob(f"*/{FILE_NAME}"))


def documented() -> Iterator[tuple[str, str]]:
    """Name and description of each configuration that comes with Heretic."""
    for name in names():
        text = (OWN_FOLDER / name / FILE_NAME).read_text(encoding="utf-8")
        yield name, tomllib.loads(text)[ABOUT]


def find_behavior(choice: str) -> Behavior:
    """Read the configuration that the setting `behavior` names.

    Args:
        choice: Name of one that comes with Heretic, or the path of a folder or TOML file.

    Raises:
        SettingsError: It does not exist, is malformed, or sets what it must not set.
    """
    return read_behavior(_file_of(choice))


def _file_of(choice: str) -> Path:
    if choice.endswith(".toml"):
        return expanded(choice)
    if "/" in choice or "\\" in choice:
        return expanded(choice) / FILE_NAME
    known = names()
    if choice in known:
        return OWN_FOLDER / choice / FILE_NAME
    raise no_such("behavior", choice, known, f"a folder of your own is written ./{choice}")


def name_of(choice: str) -> str:
    """The name of a configuration, without reading it.

    Args:
        choice: As for `find_behavior`.

    Raises:
        SettingsError: No configuration that comes with Heretic has this name.
    """
    return _name(_file_of(choice).absolute())


def _name(file: Path) -> str:
    return file.parent.name if file.name == FILE_NAME else file.stem


def read_behavior(file: Path) -> Behavior:
    """Read the configuration in a TOML file.

    Raises:
        SettingsError: It cannot be read, a key is unknown, or it sets what it must not set.
    """
    file = file.absolute()
    values = read_toml(file)
    about = str(values.pop(ABOUT, ""))
    behavior = Behavior(_name(file), file, _absolute(values, file.parent), about)
    check_ready_made(values, behavior.origin, FORBIDDEN, "behaviors")
    return behavior


def _absolute(value: Any, folder: Path, key: str = "") -> Any:
    """`value` with absolute paths for those data sets and scorers that are files in `folder`."""
    if isinstance(value, Mapping):
        return {name: _absolute(inner, folder, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_absolute(inner, folder, key) for inner in value]
    if not isinstance(value, str):
        return value
    if key == "dataset" and value and (value.startswith(".") or (folder / value).exists()):
        return str((folder / value).resolve())
    location, colon, name = value.rpartition(":")
    if key == "plugin" and location.endswith(".py"):
        return f"{(folder / location).resolve()}{colon}{name}"
    return value


def read_behavior_layer(
    above: Mapping[str, Any], named_by: SettingsLayer | None = None
) -> SettingsLayer | None:
    """The ready configuration that `behavior` names, adapted to what the user set.

    Args:
        above: All layers above this one, merged.
        named_by: The layer that names it: if that gives consent, so does the configuration.

    Raises:
        SettingsError: As `find_behavior`.
    """
    choice = above.get("behavior")
    if not choice:
        return None
    behavior = find_behavior(str(choice))
    return SettingsLayer(
        behavior.origin,
        _fitted(behavior.settings, above),
        consents=named_by is None or named_by.consents,
        whole=f"--behavior {shlex.quote(str(choice))}",
    )


def _fitted(settings: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what contradicts the settings above it."""
    values = dict(settings)
    if "scorers" in above:  # a list replaces the other, and options belong to its scorers
        values.pop("scorer", None)
    elif above.get("goal") == "induce" != values.get("goal") and values.get("scorers"):
        first, *others = values["scorers"]
        values["scorers"] = [{**first, "optimization": "maximize"}, *others]
    return values
