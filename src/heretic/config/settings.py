"""Settings: layers are read from all places in a fixed order, merged, and validated once.

The layers, highest first: arguments of the constructor, the command line (handed over by the
command line interface; `sys.argv` is never read here), the environment (`HERETIC_*`), `.env`, the
secrets folder, TOML, the ready configuration of a behaviour (`heretic.config.behaviors`), and the
preset that fits the model (`heretic.config.presets`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from heretic.config import tables
from heretic.config.behaviors import read_behavior_layer
from heretic.config.consent import check_consent
from heretic.config.fields.all import SettingsFields
from heretic.config.nested import merged
from heretic.config.presets import read_preset_layer
from heretic.config.schema import (
    SettingInfo,
    SettingsLayer,
    SettingsOrigin,
    consent_names,
    settings_of,
)
from heretic.config.sources import ARGUMENTS, merged_layers, read_arguments, read_user_layers
from heretic.errors import SettingsError
from heretic.system.adapters import model_identity
from heretic.system.hub import plugin_identity
from heretic.system.secrets import (
    MASK,
    masked_options,
    register_address,
    register_options,
)


def warn(remark: str) -> None:
    """Say it by Python's warnings: a library prints nothing by itself."""
    warnings.warn(remark, stacklevel=3)


class Settings(SettingsFields):
    """Every setting of a run; frozen.

    `Settings(model="...", n_trials=100)` reads the environment, `.env`, the secrets folder and
    `config.toml` for all that its arguments leave out, in any program. Tables can be given in part:
    `Settings(good_prompts={"split": "train[:50]"})` keeps the other defaults of that table.

    Raises:
        SettingsError: A key is unknown or a value malformed, in whatever place it stands; or as
            `check_consent`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    def __init__(self, **values: Any) -> None:
        layers = with_ready_made((read_arguments(values), *read_user_layers({}, None)))
        self._validate_layers(layers)
        check_consent(self, layers)
        if remarks := [remark for layer in layers for remark in layer.remarks]:
            warn("\n".join(remarks))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What `repr` shows: everything but secrets."""
        for name, value in super().__repr_args__():
            if name == "storage" and value is not None:
                yield name, MASK  # a password may hold any sign
            else:
                yield name, _without_secrets(value) if name == "scorer" else value

    @classmethod
    def from_layers(cls, layers: Sequence[SettingsLayer]) -> Self:
        """Settings from these layers alone, the first of them highest.

        Raises:
            SettingsError: A value is malformed.
        """
        settings = cls.__new__(cls)
        cls._validate_layers(settings, layers)
        return settings

    def _validate_layers(self, layers: Sequence[SettingsLayer]) -> None:
        _check_lists(layers)
        values = merged_layers(layers)
        for name, default in _tables(type(self)).items():
            if isinstance(values.get(name), Mapping):
                values[name] = merged(default, values[name])
        try:
            super().__init__(**values)
        except ValidationError as error:
            # The first thing that is wrong is enough for one line.
            first = error.errors(include_url=False)[0]
            raise SettingsError(_explain(first, layers), remedy=_REMEDY) from error
        for options in self.scorer.values():
            register_options(options)
        for address in filter(None, (self.storage, self.track_address)):
            register_address(address)

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        """Settings from what `to_dict` gave; nothing else is read.

        Raises:
            SettingsError: As the constructor.
        """
        return cls.from_layers([read_arguments(data)])

    def replaced(self, **changes: Any) -> Self:
        """A copy with other values, validated; nothing else is read."""
        return self.restore({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form of all settings; `restore` gives equal settings back."""
        return self.model_dump(mode="json")

    def recorded(self) -> dict[str, Any]:
        """As `to_dict`, for a file: without secrets, and without consents, which no file gives."""
        values = self.to_dict()
        kept = {name: value for name, value in values.items() if name not in consent_names()}
        return {**kept, "scorer": _without_secrets(values["scorer"])}

    def fingerprint(self) -> dict[str, Any]:
        """JSON-ready form of what changes scores: no trial counts, actions, places, or seed.

        The model is represented by its content (`heretic.system.hub`), and a scorer in a file by
        the bytes of that file. Prompt sets are left out: their texts count, and the pipeline adds
        them. Settings that were added later are left out where their value means "as before", and
        secrets always.
        """
        values = self.to_dict()
        counted = [s for s in settings_of(type(self)) if s.scores and s.kind != "table"]
        chosen = _without_as_before(values, counted)
        chosen["scorers"] = [s for s in chosen["scorers"] if not _is_added(s)]
        for scorer in chosen["scorers"]:
            scorer["plugin"] = plugin_identity(scorer["plugin"])
        chosen["scorer"] = _without_secrets(chosen["scorer"])
        chosen["model"] = model_identity(self.model, chosen.pop("model_commit"))
        return chosen


def load_settings(
    command_line: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    *,
    require_model: bool = True,
    tell: Callable[[str], None] = warn,
) -> Settings:
    """Settings of a command.

    Args:
        command_line: What the command line sets, nested as in TOML; above the environment.
        config_file: TOML file in place of `config.toml` in the working directory.
        require_model: Whether the command needs a model. If not, only what the user sets is read,
            no ready configuration and no preset; and whoever runs code by these settings calls
            `check_consent` first.
        tell: Called with what the user should know of a file that was read; by default a warning.

    Raises:
        SettingsError: A key is unknown, a value malformed, a file unreadable, the model missing.
    """
    layers = read_user_layers(command_line or {}, config_file)
    for remark in remarks_on(layers):
        tell(remark)
    if not require_model:
        return Settings.from_layers(layers)
    layers = with_ready_made(layers)
    settings = Settings.from_layers(layers)
    check_consent(settings, layers)
    if not settings.model:
        raise SettingsError(
            "No model given.",
            remedy="Usage: heretic MODEL [OPTIONS], where MODEL is a Hub id or a folder; "
            "`heretic demo` needs none and `heretic --help` says more.",
        )
    return settings


def remarks_on(said: Sequence[SettingsLayer]) -> tuple[str, ...]:
    """What the user should know of the files that were read.

    Args:
        said: What the user sets, highest layer first.
    """
    remarks = [remark for layer in said for remark in layer.remarks]
    whole = merged_layers(said)
    layer = next((layer for layer in said if "refusal_markers" in layer.values), None)
    in_file = layer is not None and layer.whole is not None
    if layer is not None and in_file and not {"scorers", "behavior"} & whole.keys():
        remarks.append(
            f"None of the scorers reads refusal_markers {layer.origin.name}; `keyword` does. If "
            "the file was written for heretic-llm, another project, `heretic migrate FILE` "
            "converts it."
        )
    return tuple(remarks)


def with_ready_made(said: Sequence[SettingsLayer]) -> tuple[SettingsLayer, ...]:
    """These layers and, below them, the ready configuration and the preset that they lead to.

    Args:
        said: What the user sets, highest layer first.

    Raises:
        SettingsError: As `find_behavior` and `find_preset`.
    """
    layers = tuple(said)
    named_by = next((layer for layer in layers if "behavior" in layer.values), None)
    behavior = read_behavior_layer(merged_layers(layers), named_by)
    layers = layers if behavior is None else (*layers, behavior)
    preset = read_preset_layer(merged_layers(layers))
    return layers if preset is None else (*layers, preset)


def _check_lists(layers: Sequence[SettingsLayer]) -> None:
    """Refuse a key of a data set where a layer below has a list of them: of which is not said.

    A table that names a data set replaces the list.

    Raises:
        SettingsError: There is such a key.
    """
    for setting in settings_of():
        above: SettingsLayer | None = None
        for layer in layers if setting.kind == "table" else ():
            value = layer.values.get(setting.name)
            if isinstance(value, list | tuple) and above is not None:
                keys = above.values[setting.name]
                spelled = ", ".join(above.origin.spell((*setting.path, key)) for key in keys)
                raise SettingsError(
                    f"{setting.name} {layer.origin.name} is a list of data sets; {spelled} "
                    f"{above.origin.name} says not which of them it changes.",
                    remedy="Change it in the list, or set `dataset` as well: that replaces it.",
                )
            if isinstance(value, list | tuple) or _names_a_set(value):
                break
            above = layer if isinstance(value, Mapping) and value else above


def _names_a_set(value: Any) -> bool:
    return isinstance(value, Mapping) and "dataset" in value


def _without_secrets(scorer: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: masked_options(options) for name, options in scorer.items()}


def _is_added(scorer: Mapping[str, Any]) -> bool:
    """Whether the default list gained a scorer later; it is only reported, so no score changes."""
    return scorer["optimization"] == "none" and scorer["name"] in tables.ADDED_SCORERS


def _tables(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """The defaults of tables, by name: a table that is given in part keeps the rest of them."""
    return {
        setting.name: setting.default.model_dump()
        for setting in settings_of(model)
        if isinstance(setting.default, BaseModel)
    }


def _without_as_before(
    values: Mapping[str, Any], settings: Iterable[SettingInfo]
) -> dict[str, Any]:
    """The values of these settings, less those that mean "as before", in lists of tables too."""
    kept: dict[str, Any] = {}
    for setting in settings:
        value = values[setting.name]
        if any(type(value) is type(old) and value == old for old in setting.as_before):
            continue
        tables = setting.kind == "list of tables"
        kept[setting.name] = (
            [_without_as_before(element, setting.keys) for element in value] if tables else value
        )
    return kept


_REMEDY = "`heretic config` prints every setting with its meaning."


def _explain(details: ErrorDetails, layers: Sequence[SettingsLayer]) -> str:
    """What is wrong with a value, in one line; the setting is spelled as its place spells it."""
    path = tables.without_tags(details["loc"])
    problem = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    problem = f"{problem[:1].lower()}{problem[1:]}".rstrip(".")
    if not path:
        return f"The settings contradict each other: {problem}."
    origin, named = _where(path, layers) or (ARGUMENTS, path)
    spelled = ARGUMENTS.spell(path) if origin.spelling == "key" else origin.spell(named)
    value = details["input"]
    hidden = isinstance(value, dict) or path[0] == "scorer"  # options may hold a key
    shown = "" if hidden else f" ({value!r})"
    return f"Setting {spelled} {origin.name}{shown}: {problem}."


def _where(
    path: tuple[str, ...], layers: Sequence[SettingsLayer]
) -> tuple[SettingsOrigin, tuple[str, ...]] | None:
    """The highest layer that has a value at `path`; and `path`, up to where that value stands.

    A value for a whole table, such as JSON in a variable, stands at the table's path.
    """
    for layer in layers:
        found: Any = layer.values
        named: tuple[str, ...] = ()
        for key in path:
            if not isinstance(found, Mapping) or key not in found:
                break
            found = found[key]
            named = (*named, key)
        if named and (named == path or not isinstance(found, Mapping)):
            return layer.origin, named
    return None
