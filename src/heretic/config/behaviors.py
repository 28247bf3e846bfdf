"""Ready configurations for behaviours other than refusal: prompts that contrast it, and scorers.

Each is a folder of `heretic/behaviors` with `config.toml`, settings as users write them, and the
prompts beside it. As a source of settings it stands below everything the user says, and above what
the model's family needs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import heretic
from heretic.config.nested import read_toml
from heretic.config.schema import SettingsLayer, SettingsOrigin, check_ready_made, no_such

OWN_FOLDER = Path(heretic.__file__).with_name("behaviors")
FILE_NAME = "config.toml"
ABOUT = "about"
"""Key beside the settings: what it is, in one line."""

FORBIDDEN = (
    "model",
    "model_commit",
    "evaluate_model",
    "trust_remote_code",
    "preset",
    "behavior",
)
"""Settings that only the user decides on, or that choose what is read."""


@dataclass(frozen=True, slots=True)
class Behavior:
    """One ready configuration.

    Attributes:
        name: Of the folder, or of the user's file.
        file: Where it stands.
        settings: What it sets, as TOML has it, with the paths of files made absolute.
        about: What it is, in one line.
    """

    name: str
    file: Path
    settings: Mapping[str, Any]
    about: str = ""

    @property
    def origin(self) -> SettingsOrigin:
        """For errors about its settings."""
        return SettingsOrigin(f"in {self.file}", "key")


def names() -> list[str]:
    """Those that come with Heretic."""
    return sorted(path.parent.name for path in OWN_FOLDER.glob(f"*/{FILE_NAME}"))


def documented() -> Iterator[tuple[str, str]]:
    """Name and meaning of each that comes with Heretic."""
    for name in names():
        text = (OWN_FOLDER / name / FILE_NAME).read_text(encoding="utf-8")
        yield name, tomllib.loads(text)[ABOUT]


def find_behavior(choice: str) -> Behavior:
    """A ready configuration.

    Args:
        choice: Name of one that comes with Heretic, or the path of a folder or TOML file.

    Raises:
        SettingsError: There is none, it is malformed, or it sets what it must not.
    """
    return read_behavior(_file_of(choice))


def _file_of(choice: str) -> Path:
    if choice.endswith(".toml"):
        return Path(choice).expanduser()
    if "/" in choice or "\\" in choice:
        return Path(choice).expanduser() / FILE_NAME
    known = names()
    if choice in known:
        return OWN_FOLDER / choice / FILE_NAME
    raise no_such("behavior", choice, known, f"a folder of your own is written ./{choice}")


def name_of(choice: str) -> str:
    """The name of a configuration, without reading it.

    Args:
        choice: As for `find_behavior`.

    Raises:
        SettingsError: It is the name of none that comes with Heretic.
    """
    return _name(_file_of(choice).absolute())


def _name(file: Path) -> str:
    return file.parent.name if file.name == FILE_NAME else file.stem


def read_behavior(file: Path) -> Behavior:
    """The configuration in a file.

    Raises:
        SettingsError: It cannot be read, a key is unknown, or it sets what it must not.
    """
    file = file.absolute()
    values = read_toml(file)
    about = str(values.pop(ABOUT, ""))
    behavior = Behavior(_name(file), file, _absolute(values, file.parent), about)
    check_ready_made(values, behavior.origin, FORBIDDEN, "behaviors")
    return behavior


def _absolute(value: Any, folder: Path, key: str = "") -> Any:
    """The same with data sets and scorers that are files beside it by their whole paths."""
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


def read_behavior_layer(above: Mapping[str, Any]) -> SettingsLayer | None:
    """The ready configuration that the layers above name, as far as it goes with them.

    Args:
        above: Those layers, merged.

    Raises:
        SettingsError: As `find_behavior`.
    """
    choice = above.get("behavior")
    if not choice:
        return None
    behavior = find_behavior(str(choice))
    return SettingsLayer(behavior.origin, _fitted(behavior.settings, above))


def _fitted(settings: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of a configuration under what the user says."""
    values = dict(settings)
    if "scorers" in above:  # a list replaces the other, and options belong to its scorers
        values.pop("scorer", None)
    elif above.get("goal") == "induce" != values.get("goal") and values.get("scorers"):
        first, *others = values["scorers"]
        values["scorers"] = [{**first, "optimization": "maximize"}, *others]
    return values
