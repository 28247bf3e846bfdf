"""Read JSON and TOML of any origin: whatever is wrong with a file becomes one line about it.

The parsers of the standard library raise more than their own errors: RecursionError where values
are nested deeply, ValueError where an integer has thousands of digits. They also accept what fails
much later: NaN, figures too large for a float, half characters that no file can hold.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from heretic.errors import HereticError, RunError

DEEPEST = 64
"""Levels of nesting that a document may have: far more than any file that is meant."""

MOST_BYTES = 256 * 2**20
"""Size of the largest document that is read: a device or a pipe may have no end."""

_MOST_DIGITS = 308
"""Digits of the largest float."""

_TOO_LARGE = f"it holds an integer of more than {_MOST_DIGITS} digits"


def read_text(path: Path, *, kind: type[HereticError] = RunError, what: str | None = None) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Args:
        kind: Class of the error raised.
        what: What the file is, for the error; by default its path.

    Raises:
        HereticError: Of class `kind`: the file is missing, unreadable, too large, or not UTF-8.
    """
    what = what or str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise kind(f"{what} does not exist.") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise kind(f"{what} cannot be read: {reason}.") from error
    if len(data) > MOST_BYTES:
        raise kind(f"{what} is larger than {MOST_BYTES // 2**20} MiB.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise kind(f"{what} is UTF-16 text.", remedy="Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise kind(
            f"{what} is not UTF-8 text (line {line}).", remedy="Save it as UTF-8."
        ) from error


def read_json(
    path: Path,
    *,
    kind: type[HereticError] = RunError,
    what: str | None = None,
    remedy: str | None = None,
    strict: bool = True,
) -> Any:
    """The content of a JSON file; the arguments are those of `read_text` and `parse_json`.

    Raises:
        HereticError: Of class `kind`: the file cannot be read, or is not such a document.
    """
    what = what or str(path)
    return _told(
        lambda: parse_json(read_text(path, kind=kind, what=what), strict=strict),
        f"{what} is not valid JSON",
        kind,
        remedy,
    )


def read_toml(
    path: Path,
    *,
    kind: type[HereticError] = RunError,
    what: str | None = None,
    remedy: str | None = None,
) -> dict[str, Any]:
    """The tables of a TOML file; the arguments are those of `read_text`.

    Raises:
        HereticError: Of class `kind`: the file cannot be read, or is not such a document.
    """
    what = what or str(path)
    tables: dict[str, Any] = _told(
        lambda: parse_toml(read_text(path, kind=kind, what=what)),
        f"{what} is not valid TOML",
        kind,
        remedy,
    )
    return tables


def parse_json(text: str | bytes, *, strict: bool = True) -> Any:
    """Parse JSON.

    Args:
        text: Bytes must be UTF-8.
        strict: Whether to refuse what the standard's readers differ on: NaN and infinity, a key
            given twice, half characters. Off for files of other programs, which may hold these.

    Raises:
        ValueError: It is not JSON, is nested too deeply or holds an integer that is too large; the
            message names the line or the key.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(
            text,
            parse_int=_integer,
            object_pairs_hook=_without_duplicates if strict else None,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} (line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    _check(value, strict)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: It is not TOML, is nested too deeply or holds an integer that is too large; the
            message names the line or the key.
    """
    try:
        tables = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # integers of more digits than Python converts
        raise ValueError(_TOO_LARGE) from error
    _check(tables, strict=True)
    return tables


def _told(read: Callable[[], Any], wrong: str, kind: type[HereticError], remedy: str | None) -> Any:
    try:
        return read()
    except ValueError as error:
        raise kind(f"{wrong}: {error}.", remedy=remedy) from error


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > _MOST_DIGITS:
        raise ValueError(_TOO_LARGE)
    return int(text)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return table


def _check(document: Any, strict: bool) -> None:
    """Refuse nesting without end, and in strict documents what cannot be computed with or written.

    Raises:
        ValueError: The message names the key.
    """
    todo: list[tuple[Any, tuple[str | int, ...]]] = [(document, ())]
    while todo:
        value, place = todo.pop()
        if len(place) > DEEPEST:
            raise ValueError("it is nested too deeply")
        if isinstance(value, Mapping):
            todo += [(inner, (*place, key)) for key, inner in value.items()]
            wrong = next(filter(None, map(_wrong, value)), None) if strict else None
            where = f"a key of {_shown(place)}"
        elif isinstance(value, list):
            todo += [(inner, (*place, index)) for index, inner in enumerate(value)]
            continue
        else:
            wrong, where = _wrong(value) if strict else None, _shown(place)
        if wrong:
            raise ValueError(f"{where} {wrong}")


def _wrong(value: Any) -> str | None:
    """Why a value can be neither computed with nor written; None if it can."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, not a finite number"
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return "holds half a character (a lone surrogate)"
    return None


def _shown(place: tuple[str | int, ...]) -> str:
    """A place as `plan.kernels[2]`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    text = text.removeprefix(".") or "the document"
    return text if text.isprintable() else repr(text)
