"""Reads single local files of prompts: text, CSV, TSV, JSON, JSON lines, Parquet.

Each file is read as it is now, by its own name, and words stay words: the loaders of data sets take
names for patterns, keep what they have read in a cache, and turn words such as `null` and `NA` into
nothing.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from heretic.errors import PromptError
from heretic.system.documents import parse_json, read_text

if TYPE_CHECKING:
    import pyarrow as pa

FILE_FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")

_TEXT = "text"
_INTEGER = re.compile(r"\s*[+-]?\d+\s*")
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


class Rows(Protocol):
    """Rows of a prompt set, by columns."""

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""

    def __len__(self) -> int:
        """The number of rows."""

    def values(self, column: str, rows: Sequence[int]) -> list[Any]:
        """The values of a column in these rows."""


@dataclass(frozen=True)
class PlainRows:
    """Rows in memory: lists of equal length by column."""

    columns: Mapping[str, Sequence[Any]]

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def values(self, column: str, rows: Sequence[int]) -> list[Any]:
        """The values of a column in these rows."""
        return [self.columns[column][row] for row in rows]


@dataclass(frozen=True)
class ArrowRows:
    """Rows of a Parquet file. Only the column that is asked for becomes Python objects."""

    table: pa.Table

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self.table.column_names)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def values(self, column: str, rows: Sequence[int]) -> list[Any]:
        """The values of a column in these rows."""
        place = self.column_names.index(column)
        found: list[Any] = self.table.column(place).take(list(rows)).to_pylist() if rows else []
        return found


def read_file(path: Path) -> Rows:
    """The rows of a file; its ending says the format.

    Raises:
        PromptError: The format is not known, or the file cannot be read, is damaged or has no rows.
            The rows of a text file may be none.
    """
    kind = path.suffix.lower()
    if kind not in FILE_FORMATS:
        raise PromptError(
            f"Prompt file {path} has no known format.",
            remedy=f"Known formats are {', '.join(FILE_FORMATS)}.",
        )
    if kind == ".parquet":
        rows: Rows = _read_parquet(path)
    else:
        text = read_text(path, kind=PromptError, what=f"Prompt file {path}")
        if kind == ".txt":
            return PlainRows({_TEXT: [line for line in _lines(text) if line.strip()]})
        if not text.strip():
            raise _empty(path)
        try:
            is_json = kind in (".json", ".jsonl")
            rows = _json_rows(text) if is_json else _csv_rows(text, kind)
        except (ValueError, csv.Error) as error:
            raise _unreadable(path, error) from error
    if not len(rows):
        raise _empty(path)
    return rows


def _lines(text: str) -> list[str]:
    """Lines, but not by splitlines(), which also splits at separators that occur in prompts."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _json_rows(text: str) -> PlainRows:
    """Rows of JSON lines, of a list of objects or texts, or of an object of lists.

    Raises:
        ValueError: It is none of these.
    """
    if text.lstrip().startswith("["):
        return _rows_of(parse_json(text, strict=False), "element")
    found = []
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            try:
                found.append((number, parse_json(line, strict=False)))
            except ValueError as error:
                if not found:
                    return _whole(text, ValueError(f"line {number}: {error}"))
                raise ValueError(f"line {number}: {error}") from error
    if len(found) == 1 and _are_columns(found[0][1]):
        return PlainRows(found[0][1])
    return _table(found, "line")


def _are_columns(value: Any) -> bool:
    """Whether a value is an object of lists that have one length."""
    if not isinstance(value, Mapping) or not all(isinstance(v, list) for v in value.values()):
        return False
    return len({len(values) for values in value.values()}) == 1


def _whole(text: str, otherwise: ValueError) -> PlainRows:
    """Rows of one object that is written over several lines."""
    try:
        document = parse_json(text, strict=False)
    except ValueError:
        raise otherwise from None
    if isinstance(document, Mapping) and all(isinstance(v, list) for v in document.values()):
        lengths = {len(values) for values in document.values()}
        if len(lengths) != 1:
            raise ValueError("its columns are lists of different lengths")
        return PlainRows(document)
    return _rows_of([document], "element")


def _rows_of(elements: list[Any], what: str) -> PlainRows:
    if elements and all(isinstance(element, str) for element in elements):
        return PlainRows({_TEXT: elements})
    return _table(list(enumerate(elements, 1)), what)


def _table(rows: Sequence[tuple[int, Any]], what: str) -> PlainRows:
    """Columns of numbered objects; a key that a row lacks is None there."""
    for number, row in rows:
        if not isinstance(row, Mapping):
            kind = "null" if row is None else type(row).__name__
            raise ValueError(f"{what} {number} holds {kind}, not an object")
    names = dict.fromkeys(name for _, row in rows for name in row)
    return PlainRows({name: [row.get(name) for _, row in rows] for name in names})


def _csv_rows(text: str, kind: str) -> PlainRows:
    """Rows of a table with a header; a column of numbers alone holds numbers.

    Raises:
        ValueError: A row has more cells than the header.
        csv.Error: A quotation mark is not closed, or stands inside a quoted cell.
    """
    limit = csv.field_size_limit(len(text) + 1)
    try:
        lines = list(_csv_lines(text, "\t" if kind == ".tsv" else ","))
    finally:
        csv.field_size_limit(limit)
    (_, header), *rows = lines
    for number, cells in rows:
        if len(cells) > len(header):
            raise ValueError(
                f"line {number} has {len(cells)} cells and the header {len(header)}; a cell with "
                "the separator in it needs quotation marks"
            )
    columns: dict[str, Sequence[Any]] = {}
    for place, name in enumerate(header):
        cells_here = [cells[place] if place < len(cells) else None for _, cells in rows]
        columns.setdefault(name, _typed(cells_here))  # of two columns with one name, the first
    return PlainRows(columns)


def _csv_lines(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, each with its number and its cells; empty cells end no line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    width = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
        while len(cells) > max(width, 1) and width and not cells[-1]:
            cells = cells[:-1]
        if cells and any(cell.strip() for cell in cells):
            width = width or len(cells)
            yield reader.line_num, cells


def _typed(cells: Sequence[str | None]) -> Sequence[Any]:
    """Cells as numbers if all of them are: such a column holds no prompts."""
    filled = [cell for cell in cells if cell and cell.strip()]
    for pattern, convert in ((_INTEGER, int), (_NUMBER, float)):
        if filled and all(pattern.fullmatch(cell) for cell in filled):
            return [convert(cell) if cell and cell.strip() else None for cell in cells]
    return cells


def _read_parquet(path: Path) -> ArrowRows:
    from pyarrow import parquet

    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise _empty(path)
            return ArrowRows(parquet.ParquetFile(file).read())
    except PromptError:
        raise
    except Exception as error:  # its reader raises many kinds of errors
        raise _unreadable(path, error) from error


def _empty(path: Path) -> PromptError:
    return PromptError(
        f"Prompt file {path} is empty.",
        remedy="Put at least one prompt in it, or name another file.",
    )


def _unreadable(path: Path, error: Exception) -> PromptError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    reason = getattr(error, "strerror", None) or reason or type(error).__name__
    return PromptError(
        f"Prompt file {path} cannot be read: {reason.rstrip('.')}.",
        remedy="Check that its content is what its ending says.",
    )
