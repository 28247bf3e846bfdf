"""The file `.env` of the working directory, which usually belongs to another program.

Only its `HERETIC_*` variables are read. What else is in it, in whatever encoding, stops nothing.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from heretic.errors import SettingsError

_log = logging.getLogger(__name__)

_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
"""Encodings by the byte order mark in front."""


def read_env_file(path: Path, prefix: str) -> dict[str, str | None]:
    """The variables of a file whose names start with `prefix`, in either case.

    `${NAME}` stands for a variable that the file itself has set before. The environment is not
    looked at: a file that was found could copy any secret from there into a setting.

    Returns:
        Text by name; None where the file names a variable without a value.

    Raises:
        SettingsError: A line with such a variable is malformed or not UTF-8, or its value takes
            something from the environment.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        _log.warning("%s cannot be read and is left out: %s", path, error.strerror or error)
        return {}
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    text = data.decode(encoding, errors="replace" if encoding == "utf-16" else "surrogateescape")
    return {
        name: value
        for name, value in _resolved(_lines(path, text, prefix), path, prefix).items()
        if _is_ours(name, prefix)
    }


def _is_ours(name: str, prefix: str) -> bool:
    return name.upper().startswith(prefix)


def _lines(path: Path, text: str, prefix: str) -> Iterator[tuple[str, str | None]]:
    """Name and value of every line that can be read.

    Raises:
        SettingsError: A line that cannot be read names a variable of ours.
    """
    from dotenv.parser import parse_stream

    for line in parse_stream(io.StringIO(text)):
        if line.error:
            if _is_ours(line.original.string.strip().removeprefix("export").strip(), prefix):
                raise SettingsError(
                    f"{path}, line {line.original.line}, cannot be read.",
                    remedy="It should be NAME=value or NAME='value'.",
                )
        elif line.key is not None:
            if _is_ours(line.key, prefix) and _is_broken(f"{line.key}{line.value}"):
                raise SettingsError(
                    f"{path} is not UTF-8 in line {line.original.line}.", remedy="Save it as UTF-8."
                )
            yield line.key, line.value


def _is_broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" or character == "\0" for character in text)


def _resolved(
    lines: Iterator[tuple[str, str | None]], path: Path, prefix: str
) -> Mapping[str, str | None]:
    """The variables, with the values of others filled in.

    Raises:
        SettingsError: The value of a variable of ours comes from the environment.
    """
    from dotenv.variables import Variable, parse_variables

    values: dict[str, str | None] = {}
    outside: dict[str, str] = {}  # to the variable of the environment that its value needs
    for name, value in lines:
        atoms = list(parse_variables(value or ""))
        used = [atom.name for atom in atoms if isinstance(atom, Variable)]
        taken = [
            outside.get(key, key) for key in used if key in outside or _is_outside(key, values)
        ]
        outside.pop(name, None)
        if taken and _is_ours(name, prefix):
            raise SettingsError(
                f"{name} in {path} takes ${{{taken[0]}}} from the environment, and a file that was "
                "found must not.",
                remedy="Write the value, or set the variable in the environment.",
            )
        if taken:
            outside[name] = taken[0]
        values[name] = None if value is None else "".join(atom.resolve(values) for atom in atoms)
    return values


def _is_outside(name: str, values: Mapping[str, str | None]) -> bool:
    return name not in values and name in os.environ
