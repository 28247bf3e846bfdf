"""Batch files: TOML with the settings of many jobs, told apart by their names.

```toml
[defaults]                  # settings of all jobs
n_trials = 100

[matrix]                    # each job once for each combination of these values
seed = [1, 2]

[[job]]
name = "small"
model = "org/small"         # and any other setting
```
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from heretic.config.nested import merged
from heretic.config.schema import SettingsOrigin, check_keys
from heretic.errors import SettingsError
from heretic.runs.folder import slug
from heretic.system.documents import read_toml

DEFAULTS, MATRIX, JOB, NAME = "defaults", "matrix", "job", "name"

REPORT = "report.html"
"""The page beside the jobs' folders."""

OWNER = "batch.json"
"""Says whose folder it is (`heretic.batch.owner`)."""

_TAKEN = (REPORT, OWNER, "run.lock")
"""Files there, whose names no job can have."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?", re.ASCII)
_FORM = "A batch file has [defaults], [matrix] and [[job]] tables, and no other keys at its top."


@dataclass(frozen=True, slots=True)
class JobTable:
    """What a batch file says about one job.

    Attributes:
        values: All its settings, nested as in TOML.
        own: Those of the job's table and of its values from the matrix, without the defaults.
        origin: Where it stands, for errors.
    """

    name: str
    values: Mapping[str, Any]
    own: Mapping[str, Any]
    origin: SettingsOrigin


def read_batch(path: Path) -> tuple[JobTable, ...]:
    """The jobs of a batch file, in their order; values of the matrix in the order of the file.

    Raises:
        SettingsError: The file cannot be read or has another form, a key is not a setting, or two
            jobs have one name.
    """
    tables = read_toml(path, kind=SettingsError, what=f"The batch file {path}")
    if unknown := sorted(tables.keys() - {DEFAULTS, MATRIX, JOB}):
        raise _wrong(path, f"has the key {unknown[0]}")
    defaults, matrix = _table(tables, DEFAULTS, path), _table(tables, MATRIX, path)
    check_keys(defaults, SettingsOrigin(f"in [{DEFAULTS}] of {path}", "key"))
    for key, values in matrix.items():
        if not isinstance(values, list) or not values:
            raise _wrong(path, f"has no list of values for {key} in [{MATRIX}]")
        for value in values:
            check_keys({key: value}, SettingsOrigin(f"in [{MATRIX}] of {path}", "key"))
    rows = tables.get(JOB, [{}] if matrix else [])
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise _wrong(path, f"has no [[{JOB}]] tables")
    found = tuple(
        _job(path, {**row}, values, defaults, needs_name=JOB in tables)
        for row in rows
        for values in _combinations(matrix)
    )
    _check_names(path, [table.name for table in found])
    return found


def _table(tables: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    found = tables.get(name, {})
    if not isinstance(found, Mapping):
        raise _wrong(path, f"has something else than a table as {name}")
    return found


def _combinations(matrix: Mapping[str, list[Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each combination of values, with the end that it gives to a job's name."""
    numbered = [list(enumerate(values, start=1)) for values in matrix.values()]
    for combination in product(*numbered):
        values = {key: value for key, (_, value) in zip(matrix, combination, strict=True)}
        parts = [_part(key, n, value) for key, (n, value) in zip(matrix, combination, strict=True)]
        yield values, "-".join(parts)


def _part(key: str, number: int, value: Any) -> str:
    """A value as part of a name; the place in its list where it is a list or a table."""
    if key == "model" and isinstance(value, str):
        return slug(value)
    if isinstance(value, dict | list):
        return str(number)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or str(number)


def _job(
    path: Path,
    row: dict[str, Any],
    combination: tuple[dict[str, Any], str],
    defaults: Mapping[str, Any],
    *,
    needs_name: bool,
) -> JobTable:
    values, end = combination
    name = row.pop(NAME, None)
    if needs_name and not isinstance(name, str):
        raise _wrong(path, f"has a [[{JOB}]] without a {NAME}")
    full = "-".join(part for part in (name, end) if part)
    if not _NAME.fullmatch(full) or full.casefold() in _TAKEN:
        raise SettingsError(
            f"{full!r} in {path} cannot be a job's name: its folder has that name.",
            remedy="Use at most 100 letters, digits, dots, underscores and hyphens.",
        )
    origin = SettingsOrigin(f"in job {full} of {path}", "key")
    check_keys(row, origin)
    if twice := sorted(row.keys() & values.keys()):
        raise SettingsError(
            f"Job {full} of {path} sets {twice[0]}, and [{MATRIX}] does too.",
            remedy="Say it in one of the two places.",
        )
    own = {**values, **row}
    return JobTable(full, merged(defaults, own), own, origin)


def _check_names(path: Path, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:
            raise SettingsError(
                f"Two jobs of {path} have the name {name}.",
                remedy="Give each a name of its own; upper and lower case do not count. Of a value "
                f"in [{MATRIX}] a name keeps letters, digits, dots, underscores and hyphens: where "
                f"values are alike in these, write [[{JOB}]] tables in place of the matrix.",
            )
        seen.add(name.casefold())


def _wrong(path: Path, found: str) -> SettingsError:
    return SettingsError(f"The batch file {path} {found}.", remedy=_FORM)
