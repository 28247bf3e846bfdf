"""How a setting is declared, and the types that several settings share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from heretic.system.documents import parse_json

GROUPS = (
    "Model",
    "Generation",
    "Prompts",
    "Method",
    "Search",
    "Workers",
    "Scorers",
    "Export",
    "Research",
)
"""The headings of the help and of the generated files, in their order."""

LARGEST = 2**31 - 1
"""Largest whole number that a setting takes: whatever counts with it can hold it."""

LARGEST_SEED = 2**63 - 1
"""Largest seed that torch takes."""

AS_BEFORE = "as_before"
"""Key of `json_schema_extra`, for keys of tables: see `setting`."""


class FieldGroup(BaseModel):
    """Base of the models that hold the settings of one group.

    Validators are built when settings are first made: the help needs names and defaults alone.
    """

    model_config = ConfigDict(defer_build=True)


def setting(default: Any, group: str, description: str, **options: Any) -> Any:
    """A field of `Settings`.

    Every setting that changes scores is part of a run's fingerprint, which names the run's folder.
    A setting that is added later would therefore rename the folders of all runs made before it, so
    that they are not found again. Such a setting must pass `as_before`: where it has that value, it
    is left out of the fingerprint. A key that is added to
    `ScorerSpecification` says the same by `Field(VALUE, json_schema_extra={AS_BEFORE: VALUE})`:
    there the value must be the default, which runs without the key go on with.

    Args:
        default: Its default; None stands for "unset".
        group: The heading it is listed under, one of `GROUPS`.
        description: What it means, for the help, `config.default.toml` and the reference page.
        **options: `example` (a value to show where the default is unset); `scores` (False where a
            change cannot change any score, so that a run can be resumed after it); `consent` (True
            where any value but the default lets code of others run: such a value counts only where
            the user gave it, see `heretic.config.consent`); `as_before` (the
            value, as JSON has it, with which everything is as it was before the setting existed;
            for settings added later that change scores); and constraints, as `pydantic.Field` takes
            them.
    """
    extra = {
        "group": group,
        "scores": options.pop("scores", True),
        "consent": options.pop("consent", False),
        "example": options.pop("example", None),
    }
    if type(default) is int:
        options.setdefault("le", LARGEST)
    if AS_BEFORE in options:
        extra[AS_BEFORE] = options.pop(AS_BEFORE)
    return Field(default, description=description, json_schema_extra=extra, **options)


def as_list(value: Any) -> Any:
    """Text from the command line or the environment as a list: JSON, or else one element."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return parse_json(value)
        except ValueError as error:
            raise ValueError(f"looks like a JSON list, but is not valid JSON: {error}") from error
    return [value] if value else []


def as_table(value: Any) -> Any:
    """Text that looks like a JSON table as a table; other text stays text."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return parse_json(value)
        except ValueError as error:
            raise ValueError(f"looks like a JSON table, but is not valid JSON: {error}") from error
    return value


def empty_is_unset(value: Any) -> Any:
    """TOML and the environment have no null: there, empty text means unset."""
    return None if value == "" else value


def from_home(value: Any) -> Any:
    """A path that begins with `~` as the path that it means: only a shell expands it by itself."""
    if not isinstance(value, str | Path) or not str(value).startswith("~"):
        return value
    try:
        return type(value)(Path(value).expanduser())
    except RuntimeError as error:  # no such user, or no home
        raise ValueError("the home folder that ~ means is not known") from error


Optionally = BeforeValidator(empty_is_unset)
FromHome = BeforeValidator(from_home)
Texts = Annotated[tuple[str, ...], BeforeValidator(as_list)]
