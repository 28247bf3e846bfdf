"""The settings as data: which there are, how each place spells them, which keys are unknown.

The fields are decoded here and nowhere else: the command line, the reference page, documents and
errors ask this module.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from heretic.config.declaration import AS_BEFORE
from heretic.config.fields.all import SettingsFields
from heretic.errors import SettingsError
from heretic.system.secrets import ENVIRONMENT_PREFIX

Kind = Literal[
    "text",
    "integer",
    "number",
    "switch",
    "path",
    "choice",
    "list of texts",
    "list of pairs",
    "list of tables",
    "table",
    "mapping",
    "open table",
    "text or table",
    "integer or name",
]
"""A `table` has known keys, a `mapping` has values of one type, an `open table` holds anything.

A prompt set is a `table`; it may also be a list of such tables."""

_SCALARS: Mapping[Any, Kind] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "switch",
    Path: "path",
}


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """A setting, or a key of a table among the settings.

    Attributes:
        path: Its name; of a key, the table's name before it.
        kind: Its type; whether it may be unset makes no difference.
        group: The heading it is listed under; empty for keys of tables.
        description: What it means.
        default: None where it is unset or has to be given.
        required: Whether it has to be given; only keys of tables are.
        example: A value to show where the default is unset.
        scores: Whether a change of it can change a score.
        consent: Whether any value but the default lets code of others run.
        as_before: Empty, or the one value (in JSON) with which everything is as it was before the
            setting existed; see `heretic.config.declaration.setting`.
        choices: The values of a `choice`.
        keys: The keys of a `table`, or those of each element of a `list of tables`.
    """

    path: tuple[str, ...]
    kind: Kind
    group: str
    description: str
    default: Any
    required: bool
    example: Any
    scores: bool
    consent: bool
    as_before: tuple[Any, ...]
    choices: tuple[str, ...]
    keys: tuple[SettingInfo, ...]

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path[-1]

    @property
    def is_list(self) -> bool:
        """Whether it is a list of anything."""
        return self.kind.startswith("list")

    @property
    def option(self) -> str:
        """The option that sets it."""
        return option_name(*self.path)

    @property
    def option_off(self) -> str:
        """The option that turns a `switch` off."""
        return f"--no-{self.option.removeprefix('--')}"


@cache
def settings_of(model: type[BaseModel] = SettingsFields) -> tuple[SettingInfo, ...]:
    """The settings that are the fields of a model, in the order of the fields."""
    return _decoded_fields(model, ())


def _decoded_fields(model: type[BaseModel], above: tuple[str, ...]) -> tuple[SettingInfo, ...]:
    return tuple(
        _decoded_field((*above, name), field) for name, field in model.model_fields.items()
    )


def _decoded_field(path: tuple[str, ...], field: FieldInfo) -> SettingInfo:
    annotation = _one_data_set(_without_none(field.annotation))
    kind = _kind(annotation)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    inner = get_args(annotation)[0] if kind == "list of tables" else annotation
    return SettingInfo(
        path=path,
        kind=kind,
        group=str(extra.get("group", "")),
        description=field.description or "",
        default=None if field.is_required() else field.get_default(),
        required=field.is_required(),
        example=extra.get("example"),
        scores=bool(extra.get("scores", True)),
        consent=bool(extra.get("consent", False)),
        as_before=(extra[AS_BEFORE],) if AS_BEFORE in extra else (),
        choices=get_args(annotation) if kind == "choice" else (),
        keys=_decoded_fields(inner, path) if _is_model(inner) else (),
    )


def _without_none(annotation: Any) -> Any:
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return kinds[0] if NoneType in get_args(annotation) and len(kinds) == 1 else annotation


def _one_data_set(annotation: Any) -> Any:
    """Of a table or a list of such tables, the table: its keys are those of each element."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    forms = [get_args(form)[0] for form in get_args(annotation) if get_origin(form) is Annotated]
    return forms[0] if forms and _is_model(forms[0]) else annotation


def _kind(annotation: Any) -> Kind:
    kind_of, arguments = get_origin(annotation), get_args(annotation)
    if kind_of is Literal:
        return "choice"
    if kind_of is tuple:
        if _is_model(arguments[0]):
            return "list of tables"
        return "list of pairs" if get_origin(arguments[0]) is tuple else "list of texts"
    if kind_of is dict:
        return "open table" if _holds_anything(annotation) else "mapping"
    if int in arguments:
        return "integer or name"
    return "table" if _is_model(annotation) else _SCALARS.get(annotation, "text or table")


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _holds_anything(annotation: Any) -> bool:
    return annotation is Any or (
        get_origin(annotation) is dict and _holds_anything(get_args(annotation)[1])
    )


def known_paths(settings: Sequence[SettingInfo] | None = None) -> Iterator[tuple[str, ...]]:
    """The path of every setting and of every key; a table comes before its keys."""
    for setting in settings_of() if settings is None else settings:
        yield setting.path
        yield from known_paths(setting.keys)


def reproducible_names() -> frozenset[str]:
    """The settings that a reproduction file records and may set: those that change scores.

    Trust in remote code, places on disk, actions and limits of this machine are not among them.
    """
    return frozenset(setting.name for setting in settings_of() if setting.scores)


_ALSO_OF_RUNS = frozenset(
    {"device_map", "max_memory", "batch_size", "max_batch_size", "max_shard_size"}
    | {"preset", "behavior", "kl_divergence_scale", "n_trials", "patience"}
    | {"good_held_out_prompts", "bad_held_out_prompts", "topic_prompts"}
)
"""What else describes how a run was searched, and can do no harm in the hands of another."""


def run_names() -> frozenset[str]:
    """The settings that are taken from the folder of a run when it is opened again.

    A run folder may come from anybody. Actions, destinations, repositories, pictures and consents
    are not among them: they come from the user of the command.
    """
    return reproducible_names() | _ALSO_OF_RUNS


def consent_names() -> tuple[str, ...]:
    """The settings that let code of others run, in the order of the settings."""
    return tuple(setting.name for setting in settings_of() if setting.consent)


def values_as_before(model: type[BaseModel] = SettingsFields) -> dict[str, Any]:
    """The values, as JSON has them, of settings that a record lacks because they came later."""
    return {setting.name: value for setting in settings_of(model) for value in setting.as_before}


def option_name(*path: str) -> str:
    """The option that sets the setting at `path`: `--good-prompts.split`."""
    return "--" + ".".join(path).replace("_", "-")


@dataclass(frozen=True, slots=True)
class SettingsOrigin:
    """A place where settings can be given.

    Attributes:
        name: As it reads in an error after the setting's name: "in config.toml".
        spelling: How keys are written there.
    """

    name: str
    spelling: Literal["key", "option", "variable"]

    def spell(self, path: tuple[str, ...]) -> str:
        """How the setting at `path` is written here."""
        if self.spelling == "option":
            return option_name(*path)
        if self.spelling == "variable":
            return ENVIRONMENT_PREFIX + "__".join(path).upper()
        return ".".join(path)


@dataclass(frozen=True, slots=True)
class SettingsLayer:
    """What one place says about settings.

    Attributes:
        values: By name; tables are nested.
        of_command: Whether it belongs to one command: its options, and the file of `--config`.
        consents: Whether it can give consent (`heretic.config.consent`): the user wrote or named
            it, it was not merely found.
        whole: The option that gives consent to all of it; None if there is none.
        remarks: What the user should know of it, one line each.
    """

    origin: SettingsOrigin
    values: Mapping[str, Any]
    of_command: bool = False
    consents: bool = True
    whole: str | None = None
    remarks: tuple[str, ...] = ()


def unknown_key(path: tuple[str, ...], origin: SettingsOrigin) -> SettingsError:
    """The error for a key that is not a setting; it names the nearest setting."""
    spelled = origin.spell(path)
    known = [origin.spell(candidate) for candidate in known_paths()]
    close = difflib.get_close_matches(spelled, known, n=1, cutoff=0.6)
    nearest = close or difflib.get_close_matches(spelled, known, n=1, cutoff=0.0)
    guess = f"Did you mean {nearest[0]}?" if close else f"The nearest known one is {nearest[0]}."
    return SettingsError(
        f"Unknown setting {spelled} {origin.name}.",
        remedy=f"{guess} `heretic config` lists all settings.",
    )


def check_keys(
    values: Mapping[str, Any],
    origin: SettingsOrigin,
    settings: Sequence[SettingInfo] | None = None,
    above: tuple[str, ...] = (),
) -> None:
    """Refuse keys that are not settings.

    Raises:
        SettingsError: A key is unknown. The error names the place and the nearest setting.
    """
    known = {setting.name: setting for setting in (settings_of() if settings is None else settings)}
    for key, value in values.items():
        if key not in known:
            raise unknown_key((*above, key), origin)
        if not known[key].keys:
            continue
        for element in value if isinstance(value, list | tuple) else [value]:
            if isinstance(element, Mapping):
                check_keys(element, origin, known[key].keys, known[key].path)


def check_ready_made(
    values: Mapping[str, Any], origin: SettingsOrigin, forbidden: Collection[str], kind: str
) -> None:
    """Refuse what a preset or a ready configuration must not set.

    Args:
        forbidden: Names of settings that only the user may set, in addition to all consents.
        kind: "presets" or "behaviors", for the error.

    Raises:
        SettingsError: A key is forbidden; or as `check_keys`.
    """
    for key in (*forbidden, *consent_names()):
        if key in values:
            raise SettingsError(f"Setting {key} {origin.name}: {kind} cannot set it.")
    check_keys(values, origin)


def no_such(kind: str, name: str, known: Collection[str], otherwise: str) -> SettingsError:
    """The error for the name of a preset or behavior that does not exist.

    Args:
        kind: "preset" or "behavior".
        known: All names that exist.
        otherwise: How users name one of their own.
    """
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"Did you mean {close[0]}? " if close else ""
    return SettingsError(
        f"There is no {kind} {name}.",
        remedy=f"{guess}There are {', '.join(known)}; {otherwise}.",
    )
