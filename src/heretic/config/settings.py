"""Settings: read once, from all places in a fixed order, and never written to.

Sources, highest first: arguments of the constructor, the command line (handed over by the command
line interface; `sys.argv` is never read here), the environment (`HERETIC_*`), `.env`, the secrets
folder, TOML, the ready configuration of a behaviour (`heretic.behaviors`), and at last the preset
that fits the model (`heretic.config.presets`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as SourceError

from heretic.config.behaviors import BehaviorSource
from heretic.config.fields import SettingsFields
from heretic.config.presets import PresetSource
from heretic.config.sources import (
    ARGUMENTS,
    COMMAND_LINE,
    DOTENV,
    ENVIRONMENT,
    ENVIRONMENT_PREFIX,
    READING,
    DotenvSource,
    EnvironmentSource,
    GivenSource,
    Reading,
    Recorded,
    SecretsSource,
    check_keys,
    toml_source,
)
from heretic.config.tables import DatasetSpecification, ScorerSpecification
from heretic.errors import SettingsError
from heretic.system.hub import model_identity, plugin_identity

__all__ = ["DatasetSpecification", "ScorerSpecification", "Settings", "load_settings"]

_NOT_IN_FINGERPRINT = {"model_commit", "protected_prompts"}
"""Part of the model's identity; told by their words, like all prompts."""


class Settings(SettingsFields, BaseSettings):
    """Every setting of a run; frozen.

    `Settings(model="...", n_trials=100)` works in any program. Tables can be given in part:
    `Settings(good_prompts={"split": "train[:50]"})` keeps the other defaults of that table.

    Raises:
        SettingsError: A key is unknown or a value malformed, in whatever place it stood.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        env_file=".env",
        env_file_encoding="utf-8",
        dotenv_filtering="only_existing",
        nested_model_default_partial_update=True,
    )

    def __init__(self, **values: Any) -> None:
        reading = READING.get() or Reading()
        token = READING.set(reading)
        try:
            check_keys({key: v for key, v in values.items() if not key.startswith("_")}, ARGUMENTS)
            reading.layers.append((ARGUMENTS, values))
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_explain(error, reading), remedy=_REMEDY) from error
        except SourceError as error:
            raise SettingsError(f"{error}.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f".env or a secret cannot be read: {error}.") from error
        finally:
            READING.reset(token)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, highest first."""
        del env_settings, dotenv_settings, file_secret_settings  # replaced by stricter ones
        reading = READING.get() or Reading()
        if reading.isolated:
            return (init_settings,)
        secrets = SecretsSource(settings_cls)
        toml = toml_source(settings_cls, reading.config_file)
        command_line = GivenSource(settings_cls, COMMAND_LINE, reading.command_line)
        chosen = [kind(settings_cls, reading) for kind in (BehaviorSource, PresetSource)]
        return (
            init_settings,
            Recorded(command_line, COMMAND_LINE, reading),
            Recorded(EnvironmentSource(settings_cls), ENVIRONMENT, reading),
            Recorded(DotenvSource(settings_cls), DOTENV, reading),
            Recorded(secrets, secrets.place, reading),
            Recorded(toml, toml.place, reading),
            *(chosen if reading.with_preset else []),
        )

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        """Settings from what `to_dict` gave; no other source is read.

        Raises:
            SettingsError: As the constructor.
        """
        token = READING.set(Reading(isolated=True))
        try:
            return cls(**data)
        finally:
            READING.reset(token)

    def replaced(self, **changes: Any) -> Self:
        """A copy with other values, validated; no other source is read."""
        return self.restore({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form of all settings; `restore` gives equal settings back."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> dict[str, Any]:
        """JSON-ready form of what changes scores: no trial counts, actions, places, or seed.

        The model stands in it by its content (`heretic.system.hub`), a scorer's file by its bytes.
        The prompt sets are left out: what counts are their words, which only who reads them knows.
        """
        values = self.to_dict()
        chosen: dict[str, Any] = {}
        for name, info in SettingsFields.model_fields.items():
            extra = info.json_schema_extra
            scores = isinstance(extra, dict) and extra["scores"]
            is_prompts = isinstance(getattr(self, name), DatasetSpecification)
            if scores and not is_prompts and name not in _NOT_IN_FINGERPRINT:
                chosen[name] = values[name]
        for scorer in chosen["scorers"]:
            scorer["plugin"] = plugin_identity(scorer["plugin"])
        chosen["model"] = model_identity(self.model, self.model_commit)
        return chosen


def load_settings(
    command_line: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    *,
    require_model: bool = True,
) -> Settings:
    """Settings of a command.

    Args:
        command_line: What the command line sets, nested as in TOML; above the environment.
        config_file: TOML file in place of `config.toml` in the working directory.
        require_model: Whether the command cannot do without a model. Without one, what the user
            says is wanted alone, and no preset is looked for.

    Raises:
        SettingsError: A key is unknown, a value malformed, a file unreadable, the model missing.
    """
    reading = Reading(
        command_line=command_line or {}, config_file=config_file, with_preset=require_model
    )
    token = READING.set(reading)
    try:
        settings = Settings()
    finally:
        READING.reset(token)
    if require_model and not settings.model:
        raise SettingsError(
            "No model given.",
            remedy="Usage: heretic MODEL [OPTIONS], where MODEL is a Hub id or a folder; "
            "`heretic demo` needs none and `heretic --help` says more.",
        )
    return settings


_REMEDY = "`heretic config` prints every setting with its meaning."


def _explain(error: ValidationError, reading: Reading) -> str:
    """The first thing that is wrong, in one line, in the words of the place it stood in."""
    return _explain_one(error.errors(include_url=False)[0], reading)


def _explain_one(details: ErrorDetails, reading: Reading) -> str:
    path = tuple(str(part) for part in details["loc"])
    problem = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    problem = f"{problem[:1].lower()}{problem[1:]}".rstrip(".")
    found = reading.where(path)
    if not path:
        return f"The settings contradict each other: {problem}."
    place, named = found or (ARGUMENTS, path)
    spelled = ARGUMENTS.spell(path) if place.kind == "key" else place.spell(named)
    value = details["input"]
    shown = "" if isinstance(value, dict) else f" ({value!r})"
    return f"Setting {spelled} {place.name}{shown}: {problem}."
