"""Presets: settings that a family of models needs, as data.

A preset is the lowest layer of settings: every other layer overrides it. What it sets is recorded
with a run like any other setting.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.config.nested import read_toml
from heretic.config.schema import SettingsLayer, SettingsOrigin, check_ready_made, no_such
from heretic.errors import ModelError, SettingsError
from heretic.system.adapters import find_adapter
from heretic.system.documents import parse_json
from heretic.system.files import expanded
from heretic.system.hub import gguf_architecture, gguf_parts, hub_text, is_local

if TYPE_CHECKING:
    from heretic.config.fields.all import SettingsFields

OWN_FILE = Path(__file__).with_name("presets.toml")

CONDITIONS = ("model_types", "names", "stored_dtypes")
WHY = "why"

FORBIDDEN = ("model", "model_commit", "evaluate_model", "preset")
"""Settings that choose the preset. What gives consent is refused as well."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the conditions of presets can ask about a model.

    Attributes:
        name: Hub id or name of the folder, in lower case.
        types: `model_type` of its configuration and of the text model inside, in lower case.
        dtypes: The dtypes that the configuration states for the checkpoint.
    """

    name: str
    types: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preset:
    """One table in a file of presets.

    Attributes:
        file: The TOML file.
        conditions: Globs by condition. All conditions must be met; one glob of each suffices.
        settings: Values as in the TOML file.
        why: The reason for it, for the reference page.
    """

    name: str
    file: Path
    conditions: Mapping[str, tuple[str, ...]]
    settings: Mapping[str, Any]
    why: str = ""

    @property
    def origin(self) -> SettingsOrigin:
        """Where errors say that its settings stand."""
        return SettingsOrigin(f"in preset {self.name} of {self.file}", "key")

    def fits(self, facts: Facts) -> bool:
        """Whether the model meets all conditions."""
        asked = {"model_types": facts.types, "names": (facts.name,), "stored_dtypes": facts.dtypes}
        return all(
            any(fnmatchcase(value, glob) for value in asked[condition] for glob in globs)
            for condition, globs in self.conditions.items()
        )

    def held(self, settings: SettingsFields) -> Preset:
        """The preset with only those values that `settings` have: users may have set others."""
        values = settings.model_dump(mode="json")
        kept = {name: value for name, value in self.settings.items() if _in(value, values[name])}
        return replace(self, settings=kept)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `file` is None for presets that come with Heretic."""
        file = None if self.file == OWN_FILE else str(self.file)
        return {"name": self.name, "file": file, "settings": dict(self.settings)}

    def line(self) -> str:
        """Its name and its values, in one line."""
        values = ", ".join(
            f"{name} = {json.dumps(value, ensure_ascii=False)}"
            for name, value in self.settings.items()
        )
        origin = "" if self.file == OWN_FILE else f" of {self.file}"
        return f"Preset {self.name}{origin}: {values or 'nothing that you have not set yourself'}"


def _in(value: Any, whole: Any) -> bool:
    if isinstance(value, Mapping) and isinstance(whole, Mapping):
        return all(key in whole and _in(inner, whole[key]) for key, inner in value.items())
    return bool(value == whole)


def read_presets(file: Path = OWN_FILE) -> tuple[Preset, ...]:
    """The presets in a file, in the order of the file.

    Raises:
        SettingsError: The file cannot be read, an entry is not a table, or a key is neither a
            setting nor a condition.
    """
    return tuple(_preset(name, table, file) for name, table in read_toml(file).items())


def _preset(name: str, table: Any, file: Path) -> Preset:
    if not isinstance(table, Mapping):
        raise SettingsError(
            f"{name} in {file} is not a table.",
            remedy=f'A preset is a table: [{name}], then model_types = ["llama"] and settings.',
        )
    settings = {key: v for key, v in table.items() if key not in (*CONDITIONS, WHY)}
    preset = Preset(name, file, {}, settings, str(table.get(WHY, "")))
    check_ready_made(settings, preset.origin, FORBIDDEN, "presets")
    conditions = {
        key: _globs(table[key], f"{key} {preset.origin.name}") for key in CONDITIONS if key in table
    }
    return replace(preset, conditions=conditions)


def _globs(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(glob, str) for glob in value):
        raise SettingsError(f"Condition {what} is not a list of texts.")
    return tuple(glob.lower() for glob in value)


def find_preset(choice: str, model: str, revision: str | None) -> Preset | None:
    """The preset of a model; None if no preset applies.

    Args:
        choice: The value of the setting `preset`: auto, none, the name of a preset, or a file.

    Raises:
        SettingsError: No preset has that name, or the file is malformed.
    """
    if choice in ("", "none") or not model:
        return None
    if choice != "auto" and not is_file(choice):
        return _named(choice)
    presets = read_presets()
    if choice != "auto":
        presets = (*read_presets(expanded(choice)), *presets)
    facts = model_facts(model, revision)
    return next((preset for preset in presets if preset.fits(facts)), None)


def is_file(choice: str) -> bool:
    """Whether the setting `preset` names a file of the user's own."""
    return choice.endswith(".toml") or "/" in choice or "\\" in choice


def _named(name: str) -> Preset:
    presets = {preset.name: preset for preset in read_presets()}
    if name in presets:
        return presets[name]
    raise no_such("preset", name, presets, "a file of your own ends in .toml")


def model_facts(model: str, revision: str | None) -> Facts:
    """What a model's configuration says.

    Where it cannot be read, only the name is known; loading the model will say why. An adapter is
    of the family of its base model.
    """
    with suppress(ModelError):
        adapter = find_adapter(model, revision)
        if adapter is not None:
            model, revision = adapter.base, adapter.base_revision
    config = _configuration(model, revision)
    text = config.get("text_config")
    parts = [config, text] if isinstance(text, dict) else [config]
    types = [part.get("model_type") for part in parts]
    dtypes = [part.get(key) for part in parts for key in ("dtype", "torch_dtype")]
    return Facts(
        _name(model).lower(),
        tuple(value.lower() for value in types if isinstance(value, str)),
        tuple(value.removeprefix("torch.") for value in dtypes if isinstance(value, str)),
    )


def _name(model: str) -> str:
    """The name that presets compare: a folder's own, unless the folder is in the Hub's cache."""
    if not is_local(model):
        return model
    path = expanded(model).resolve()
    return next((part for part in path.parts if part.startswith("models--")), path.name)


def _configuration(model: str, revision: str | None) -> dict[str, Any]:
    """The model's config.json; empty if it cannot be read.

    A GGUF file gives its architecture as model type: most families use the same name for both. A
    GGUF file on the Hub gives nothing, because the whole file would have to be downloaded.
    """
    if gguf_parts(model) is not None:
        kind = gguf_architecture(expanded(model)) if is_local(model) else None
        return {} if kind is None else {"model_type": kind}
    try:
        text = (
            (expanded(model) / "config.json").read_text(encoding="utf-8-sig")
            if is_local(model)
            else hub_text(model, "config.json", revision) or ""
        )
        data = parse_json(text, strict=False)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def applied(settings: SettingsFields) -> Preset | None:
    """The preset that applied to settings, with those of its values that they have; or None.

    Settings keep the values of a preset, not the preset: None too if its file no longer exists.
    """
    try:
        preset = find_preset(settings.preset, settings.model, settings.model_commit)
    except SettingsError:
        return None
    return None if preset is None else preset.held(settings)


def read_preset_layer(above: Mapping[str, Any]) -> SettingsLayer | None:
    """The preset that fits the model, if there is one.

    Args:
        above: All layers above this one, merged; they name the model.

    Raises:
        SettingsError: As `find_preset`; or the model's name cannot be looked up as a path.
    """
    model = str(above.get("model") or "")
    revision = above.get("model_commit")
    try:
        preset = find_preset(
            str(above.get("preset", "auto")), model, str(revision) if revision else None
        )
    except OSError as error:
        raise SettingsError(f"The model {model} cannot be looked up: {error}.") from error
    if preset is None:
        return None
    return SettingsLayer(preset.origin, preset.settings, consents=preset.file == OWN_FILE)


def documented() -> Iterator[tuple[str, str, str, str]]:
    """Name, conditions, settings and reason of every preset that comes with Heretic."""
    for preset in read_presets():
        models = "; ".join(
            f"{condition}: {', '.join(globs)}" for condition, globs in preset.conditions.items()
        )
        yield preset.name, models, preset.line().partition(": ")[2], preset.why
