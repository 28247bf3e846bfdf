"""What the user sets: each function reads one place and returns one layer of settings.

Every reader refuses keys that are not settings; the error names the nearest one.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from heretic.config.env_file import read_env_file
from heretic.config.foreign.lines import in_lines
from heretic.config.foreign.translate import (
    check_known,
    check_ours,
    is_foreign,
    read_document,
    translate,
)
from heretic.config.nested import decoded, merged, put
from heretic.config.schema import (
    Kind,
    SettingInfo,
    SettingsLayer,
    SettingsOrigin,
    check_keys,
    settings_of,
    unknown_key,
)
from heretic.errors import SettingsError
from heretic.system.files import expanded
from heretic.system.secrets import ENVIRONMENT_PREFIX

DEFAULT_CONFIG_FILE = Path("config.toml")
DOTENV_FILE = Path(".env")
SECRETS_VARIABLE = "HERETIC_SECRETS_DIR"

RESERVED_VARIABLES = frozenset({SECRETS_VARIABLE})
"""Variables with the prefix that are not settings."""

ARGUMENTS = SettingsOrigin("in the arguments of Settings()", "key")
COMMAND_LINE = SettingsOrigin("on the command line", "option")
ENVIRONMENT = SettingsOrigin("in the environment", "variable")
DOTENV = SettingsOrigin("in .env", "variable")

_PLAIN: Container[Kind] = {"text", "integer", "number", "switch", "path", "choice"}
"""Settings whose text in a variable is not JSON."""

_ARGUMENTS = TypeAdapter(dict[str, Any])


def read_arguments(values: Mapping[str, Any]) -> SettingsLayer:
    """The arguments of a constructor; models such as `DatasetSpecification` become tables.

    Raises:
        SettingsError: As `check_keys`.
    """
    return _checked(SettingsLayer(ARGUMENTS, _ARGUMENTS.dump_python(dict(values))))


def read_command_line(values: Mapping[str, Any]) -> SettingsLayer:
    """The options of the command line, which `heretic.cli.options` has parsed.

    Raises:
        SettingsError: As `check_keys`.
    """
    return _checked(SettingsLayer(COMMAND_LINE, values, of_command=True))


def read_environment() -> SettingsLayer:
    """`HERETIC_*` variables.

    Raises:
        SettingsError: As `read_variables`.
    """
    return read_variables(os.environ, ENVIRONMENT)


def read_dotenv() -> SettingsLayer:
    """`HERETIC_*` variables in the file `.env` of the working directory.

    Raises:
        SettingsError: As `read_env_file` and `read_variables`.
    """
    if not (DOTENV_FILE.is_file() or DOTENV_FILE.is_fifo()):
        return SettingsLayer(DOTENV, {}, consents=False)
    variables = read_env_file(DOTENV_FILE, ENVIRONMENT_PREFIX)
    return replace(read_variables(variables, DOTENV), consents=False)


def read_secrets() -> SettingsLayer:
    """Files in the folder `HERETIC_SECRETS_DIR`: each is named like a variable and holds its value.

    Raises:
        SettingsError: The folder does not exist, or a file cannot be read; or as `read_variables`.
    """
    name = os.environ.get(SECRETS_VARIABLE)
    if not name:
        return SettingsLayer(SettingsOrigin("in the secrets folder", "variable"), {})
    folder = expanded(name)
    if not folder.is_dir():
        raise SettingsError(
            f"The secrets folder {folder} does not exist.",
            remedy=f"Make it, or unset {SECRETS_VARIABLE}.",
        )
    try:
        variables = {
            path.name: path.read_text(encoding="utf-8-sig").strip()
            for path in sorted(folder.iterdir())
            if path.name.upper().startswith(ENVIRONMENT_PREFIX) and path.is_file()
        }
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"A secret in {folder} cannot be read: {error}.") from error
    return read_variables(variables, SettingsOrigin(f"in the secrets folder {folder}", "variable"))


def read_config(file: Path | None) -> SettingsLayer:
    """A TOML file: `file`, or else `config.toml` in the working directory if there is one.

    A settings, judge or reproduction file of `heretic-llm` is read as if it had been converted by
    `heretic migrate`; the layer's remarks say what was.

    Raises:
        SettingsError: The file cannot be read or is not TOML; or as `check_keys`.
    """
    path = file or DEFAULT_CONFIG_FILE
    # A link that leads nowhere is a file that the user misses, not one that was never there.
    there = file is not None or os.path.lexists(path)
    values = read_document(path) if there else {}
    origin = SettingsOrigin(f"in {path}", "key")
    remarks: tuple[str, ...] = ()
    if there and is_foreign(values, path):
        found = translate(values, path)
        check_known(found, origin)
        values, remarks = dict(found.values), in_lines(found, path)
    else:
        check_ours(values, path, origin)
    return _checked(
        SettingsLayer(
            origin,
            values,
            of_command=file is not None,
            consents=file is not None,
            whole=f"--config {shlex.quote(str(path))}",
            remarks=remarks,
        )
    )


def read_variables(variables: Mapping[str, str | None], origin: SettingsOrigin) -> SettingsLayer:
    """Settings in variables: `HERETIC_N_TRIALS`, `HERETIC_GOOD_PROMPTS__SPLIT`, in either case.

    Lists and tables are JSON; text that is not JSON is left to validation. Variables without the
    prefix `HERETIC_` are ignored, and so are variables without a value.

    Args:
        variables: Text by name; None where a file names a variable without a value.

    Raises:
        SettingsError: A variable has the prefix and is not a setting; or as `check_keys`.
    """
    values: dict[str, Any] = {}
    names = {name.upper(): text for name, text in variables.items()}
    ours = {name for name in names if name.startswith(ENVIRONMENT_PREFIX)} - RESERVED_VARIABLES
    for name in sorted(ours, key=lambda name: (name.count("__"), name)):  # whole tables come first
        path = tuple(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
        setting = _setting_of_variable(path)
        if setting is None:
            raise unknown_key(path, origin)
        text = names[name]
        if text is None:
            continue
        value = text if setting.kind in _PLAIN else decoded(text)
        depth = len(path) - len(setting.path)
        if setting.kind == "open table" and depth <= 1 and isinstance(value, Mapping):
            value = decoded(value)  # texts within it too: their types are not known here
        if depth > 0 or value is not None:  # JSON's null leaves a setting to the layers below
            put(values, path, value)
    return _checked(SettingsLayer(origin, values))


def _setting_of_variable(path: tuple[str, ...]) -> SettingInfo | None:
    """The setting that a variable sets: for a key of an open table, that table."""
    known: Iterable[SettingInfo] = settings_of()
    found: SettingInfo | None = None
    for key in path:
        if found is not None and found.kind == "open table":
            return found
        found = next((setting for setting in known if setting.name == key), None)
        if found is None:
            return None
        known = found.keys if found.kind == "table" else ()
    return found


def read_user_layers(
    command_line: Mapping[str, Any], config_file: Path | None
) -> tuple[SettingsLayer, ...]:
    """Everything the user sets outside a program, highest layer first.

    Raises:
        SettingsError: As the readers.
    """
    return (
        read_command_line(command_line),
        read_environment(),
        read_dotenv(),
        read_secrets(),
        read_config(config_file),
    )


def merged_layers(layers: Iterable[SettingsLayer]) -> dict[str, Any]:
    """The values of several layers as one table; the first layer is the highest."""
    return reduce(lambda above, layer: merged(layer.values, above), layers, {})


def _checked(layer: SettingsLayer) -> SettingsLayer:
    check_keys(layer.values, layer.origin)
    return layer
