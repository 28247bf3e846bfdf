"""Opens the place that a prompt set names: a file, a folder, or a data set on the Hub."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.errors import PromptError
from heretic.prompts.files import FILE_FORMATS, Rows, read_file
from heretic.records.category_names import NO_CATEGORY
from heretic.system.files import expanded
from heretic.system.hub import is_local

if TYPE_CHECKING:
    from datasets import Dataset

    from heretic.config.tables import DatasetSpecification

_SHOWN_AT_MOST = 12
_LOCAL = "Or name a local file or folder instead."
_SUBSETS = re.compile(r"(?:available configs|Available): \[(.*?)\]")
"""Where errors of `datasets` list the subsets that exist."""

_PLAIN_SLICE = re.compile(r"(\w+(?:\.\w+)*)(?:\[(-?\d{1,18})?:(-?\d{1,18})?\])?")
"""A split by its name, or one slice of it by numbers of rows, not longer than Python reads."""

_PATTERNS = re.compile(r"[*?\[\]{}!]")
"""Characters by which file systems of `datasets` take a name for a pattern."""


@dataclass(frozen=True)
class DatasetRows:
    """Rows of a split that `datasets` has read; the members are those of `Rows`."""

    data: Dataset

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self.data.column_names)

    def __len__(self) -> int:
        return len(self.data)

    def values(self, column: str, rows: Sequence[int]) -> list[Any]:
        """The values of a column in these rows."""
        return list(self.data.select(list(rows))[column])


_CATEGORY = str | int | None


@dataclass(frozen=True)
class _Source:
    """Splits of a data set. With `any_split` the only split is used for every name."""

    splits: Mapping[str, Rows]
    any_split: bool = False


def read_texts(specification: DatasetSpecification) -> list[tuple[str, str | None]]:
    """The texts of a prompt set with their categories, in order, without empty texts.

    The category is None where the set has no `category_column`.

    Raises:
        PromptError: The set, split or a column does not exist, there is no text in it, or the
            categories are neither texts nor whole numbers.
    """
    name, column = specification.dataset, specification.column
    source = _open(specification)
    chosen = _select(source, specification.split, name)
    values = _column(chosen, column, name, "Set `column` to the one that holds the prompts.")
    names = chosen[0][0].column_names
    wrong = next((value for value in values if not isinstance(value, str | None)), None)
    if wrong is not None:
        raise PromptError(
            f"Column {column!r} of prompt set {name} holds {type(wrong).__name__}, not text; its "
            f"columns are {_listed(names)}.",
            remedy="Set `column` to the one that holds the prompts.",
        )
    categories = _categories(chosen, specification)
    texts = [
        (text, category)
        for text, category in zip(values, categories, strict=True)
        if text and text.strip()
    ]
    for text, _ in texts:
        check_characters(text, name)
    if not texts:
        raise _no_rows(source, specification)
    return texts


def read_columns(specification: DatasetSpecification, columns: Sequence[str]) -> list[list[Any]]:
    """The values of several columns, in the order of the columns; all have the same length.

    Raises:
        PromptError: The set, split or a column does not exist, or there is no row.
    """
    name = specification.dataset
    source = _open(specification)
    chosen = _select(source, specification.split, name)
    remedy = "Set `column`, `endings` and `right` to columns that exist."
    found = [_column(chosen, column, name, remedy) for column in columns]
    if not found[0]:
        raise _no_rows(source, specification)
    return found


def _column(
    chosen: Sequence[tuple[Rows, Sequence[int]]], column: str, name: str, remedy: str
) -> list[Any]:
    """The values of a column in the chosen rows."""
    names = chosen[0][0].column_names
    if column not in names:
        raise PromptError(
            f"Prompt set {name} has no column {column!r}; its columns are {_listed(names)}.",
            remedy=remedy,
        )
    return [value for rows, numbers in chosen for value in rows.values(column, numbers)]


def _no_rows(source: _Source, specification: DatasetSpecification) -> PromptError:
    lengths = ", ".join(f"{split} ({len(rows)} rows)" for split, rows in source.splits.items())
    wanted = f"split {specification.split}, " if specification.split else ""
    return PromptError(
        f"Prompt set {specification.dataset}, {wanted}is empty; it has {lengths}.",
        remedy="Set `split` to rows that exist.",
    )


def _categories(
    chosen: Sequence[tuple[Rows, Sequence[int]]], specification: DatasetSpecification
) -> Sequence[str | None]:
    """The category of each row; None in sets without categories."""
    column, name = specification.category_column, specification.dataset
    if column is None:
        return [None] * sum(len(numbers) for _, numbers in chosen)
    names = chosen[0][0].column_names
    if column not in names or column == specification.column:
        own = " besides that of the prompts" if column == specification.column else ""
        raise PromptError(
            f"Prompt set {name} has no column {column!r} of categories{own}; its columns are "
            f"{_listed(names)}.",
            remedy="Set `category_column` to one of them, or leave it out. Text files have no "
            "categories; CSV, JSON lines and Parquet files can have them.",
        )
    values = [
        value for rows, numbers in chosen for value in _names_of_classes(rows, column, numbers)
    ]
    wrong = next((v for v in values if isinstance(v, bool) or not isinstance(v, _CATEGORY)), None)
    if wrong is not None:
        raise PromptError(
            f"Column {column!r} of prompt set {name} holds {type(wrong).__name__}, which is no "
            "category.",
            remedy="Set `category_column` to a column of texts or whole numbers.",
        )
    return [" ".join(str("" if v is None else v).split()) or NO_CATEGORY for v in values]


def _names_of_classes(rows: Rows, column: str, numbers: Sequence[int]) -> list[Any]:
    """The values of a column; where `datasets` keeps numbers of classes, the classes' names."""
    values = rows.values(column, numbers)
    kind = rows.data.features[column] if isinstance(rows, DatasetRows) else None
    names = getattr(kind, "names", None)
    if names is None:
        return values
    return [names[value] if value is not None and value >= 0 else None for value in values]


def check_characters(text: str, name: str) -> None:
    """Refuse half characters, which no tokenizer takes.

    Raises:
        PromptError: The text has one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"Prompt set {name} holds half a character (a lone surrogate) in {text[:60]!r}.",
            remedy="Save the prompts as UTF-8 again, from their source.",
        ) from error


def _open(specification: DatasetSpecification) -> _Source:
    """The splits of a file, a folder, or a data set on the Hub."""
    name, subset = specification.dataset, specification.config
    if not name:
        raise PromptError("A prompt set has no name.", remedy="Set `dataset`.")
    try:
        path = expanded(name)
        if path.is_file():
            if subset is not None:
                raise _no_subsets(f"file {path}")
            return _Source({"train": read_file(path)}, any_split=True)
        if path.is_dir():
            return _open_folder(path, subset)
        local = is_local(name)
    except (OSError, RuntimeError) as error:  # a name that no file can have, a user without a home
        raise PromptError(
            f"Prompt set {name} cannot be opened: {_first_line(error)}",
            remedy="Set `dataset` to a file or folder, or to a data set on the Hub.",
        ) from error
    if local or path.suffix.lower() in FILE_FORMATS:
        raise PromptError(
            f"Prompt file {name} does not exist{_neighbours(path)}.",
            remedy="Set `dataset` to a file that exists.",
        )
    return _open_hub(name, subset, specification.commit)


def _no_subsets(place: str) -> PromptError:
    return PromptError(
        f"Prompt {place} has no subsets.",
        remedy="Leave `config` out: a data set on the Hub may have subsets, and so may a folder of "
        "data files whose README.md names them.",
    )


def _open_folder(path: Path, subset: str | None) -> _Source:
    from datasets import Dataset, DatasetDict, load_from_disk

    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if saved and subset is not None:
        raise _no_subsets(f"folder {path}, written by save_to_disk,")
    try:
        data = _quietly(load_from_disk, str(path)) if saved else _load_files(path, subset)
    except PromptError:
        raise
    except Exception as error:
        raise _which_subset(f"folder {path}", subset, error) or PromptError(
            f"Prompt folder {path} cannot be read: {_first_line(error)}",
            remedy="It should be written by save_to_disk, or hold data files.",
        ) from error
    if isinstance(data, DatasetDict):
        return _Source({str(split): DatasetRows(rows) for split, rows in data.items()})
    assert isinstance(data, Dataset)
    # `data.split` keeps the slice it was made with: train[:100]
    split = str(data.split).partition("[")[0] if data.split is not None else ""
    return _Source({split or "train": DatasetRows(data)}, any_split=not split)


def _which_subset(place: str, subset: str | None, error: Exception) -> PromptError | None:
    """The error where `config` is missing or names no subset; None for all other errors.

    The library tells both by a ValueError whose text lists the subsets that exist.
    """
    found = _SUBSETS.search(str(error))
    if found is None or not isinstance(error, ValueError):
        return None
    problem = "has several subsets" if subset is None else f"has no subset {subset!r}"
    names = found[1].replace("'", "")
    return PromptError(
        f"Prompt {place} {problem}; it has {names}.", remedy="Set `config` to one of them."
    )


def _load_files(folder: Path, subset: str | None) -> Any:
    """The splits of a folder of data files, as `datasets` finds them by the files' names.

    It reads links to them: their names hold no pattern, and a new place finds nothing old in its
    cache. JSON is looked at first, since a row that is no object ends the interpreter.
    """
    from datasets import load_dataset

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    data = [path for path in files if path.suffix.lower() in FILE_FORMATS]
    for path in data:
        if path.suffix.lower() in (".json", ".jsonl") and "dataset_info" not in path.name:
            read_file(path)
    tables = bool(data) and all(path.suffix.lower() in (".csv", ".tsv") for path in data)
    options = {"keep_default_na": False} if tables else {}
    with tempfile.TemporaryDirectory(prefix="heretic-") as place:
        links = Path(place) / "data"
        links.mkdir()
        for number, path in enumerate(files):
            name = path.relative_to(folder).as_posix()
            link = links / _PATTERNS.sub("_", name)
            if link.exists():  # two names that differ in such characters only
                link = link.with_name(f"{link.stem}_{number}{link.suffix}")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
        return _quietly(
            load_dataset,
            str(links),
            subset,
            cache_dir=f"{place}/cache",
            keep_in_memory=True,
            **options,
        )


def _open_hub(name: str, subset: str | None, commit: str | None) -> _Source:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    wanted = f"{name} at revision {commit}" if commit else name
    try:
        data = _quietly(load_dataset, name, subset, revision=commit)
    except (DatasetNotFoundError, GatedRepoError, HFValidationError) as error:
        raise PromptError(
            f"Prompt set {wanted} is not a file or folder here, and the Hub has no set of that "
            f"name or restricts access to it: {_first_line(error)}",
            remedy=f"Check the name; log in with `hf auth login` if it needs access. {_LOCAL}",
        ) from error
    except (ConnectionError, HfHubHTTPError, TimeoutError) as error:
        raise _unreachable(wanted, error) from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        if _is_network_error(error):
            raise _unreachable(wanted, error) from error
        raise _which_subset(f"set {wanted}", subset, error) or PromptError(
            f"Prompt set {wanted} cannot be read: {_first_line(error)}"
        ) from error
    return _Source({str(split): DatasetRows(rows) for split, rows in data.items()})


def _select(source: _Source, split: str, name: str) -> list[tuple[Rows, Sequence[int]]]:
    """The rows of a split with its slices, such as `train[:400]` or `[10%:]`, in their order."""
    splits = dict(source.splits)
    exist = f"its splits are {_listed(splits)}"
    if not split or split.startswith("["):
        if len(splits) > 1:
            raise PromptError(
                f"Prompt set {name} has several splits, and {split!r} names none; {exist}.",
                remedy=f"Set `split` to, for example, {next(iter(splits))}{split}.",
            )
        split = f"{next(iter(splits))}{split}"
    plain = _plainly_sliced(source, split)
    if plain is not None:
        return [plain]
    from datasets import ReadInstruction

    try:
        instruction = ReadInstruction.from_spec(split)
        if source.any_split:
            only = next(iter(splits.values()))
            splits = dict.fromkeys(_split_names(split), only)
        parts = instruction.to_absolute({key: len(rows) for key, rows in splits.items()})
    except (ValueError, AssertionError) as error:
        unknown = "Unknown split" in str(error)
        problem = f"has no split {split!r}" if unknown else f"cannot be sliced by {split!r}"
        raise PromptError(
            f"Prompt set {name} {problem}; {exist}.",
            remedy="Set `split` to one that exists."
            if unknown
            else "Slices look like train[:400], [10%:] or test[10:20].",
        ) from error
    return [(splits[part.splitname], range(part.from_, part.to)) for part in parts]


def _plainly_sliced(source: _Source, split: str) -> tuple[Rows, Sequence[int]] | None:
    """The rows of one split, whole or sliced by numbers; None for all else.

    `datasets` would say the same, but takes longer to import than the files of most prompt sets
    take to read.
    """
    found = _PLAIN_SLICE.fullmatch(split)
    if found is None:
        return None
    name, *ends = found.groups()
    rows = next(iter(source.splits.values())) if source.any_split else source.splits.get(name)
    if rows is None:
        return None
    first, last = (None if end is None else int(end) for end in ends)
    return rows, range(len(rows))[first:last]


def _split_names(split: str) -> list[str]:
    """The names in `train[:10]+test`."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def _quietly(function: Any, *arguments: Any, **options: Any) -> Any:
    """Call a reader of `datasets` without its progress bars and logs, which disturb the display."""
    import datasets

    had_bars = not datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        return function(*arguments, **options)
    finally:
        datasets.logging.set_verbosity(verbosity)
        if had_bars:
            datasets.enable_progress_bars()


def _neighbours(path: Path) -> str:
    """The prompt files in the folder of a missing file, as the end of a sentence."""
    folder = path.parent
    if not folder.is_dir():
        return f", nor does its folder {folder}"
    try:
        names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in FILE_FORMATS)
    except OSError:  # it may not be listed
        return ""
    return f"; its folder has {_listed(names)}" if names else "; its folder has no data files"


def _unreachable(wanted: str, error: Exception) -> PromptError:
    return PromptError(
        f"Prompt set {wanted} is not in the local cache, and the Hub cannot be reached: "
        f"{_first_line(error)}",
        remedy=f"Check the network, HF_ENDPOINT and HF_HUB_OFFLINE. {_LOCAL}",
    )


def _is_network_error(error: BaseException | None) -> bool:
    """Whether a failed connection or offline mode caused an error."""
    words = ("offline", "connect", "resolve", "reach the", "timed out", "timeout")
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        if any(word in f"{type(error).__name__} {error}".lower() for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    """The first line of an error's cause, ending with a full stop."""
    while type(error).__name__.startswith("DatasetGeneration") and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _listed(names: Iterable[str]) -> str:
    shown: Sequence[str] = list(names)
    more = len(shown) - _SHOWN_AT_MOST
    return ", ".join(shown[:_SHOWN_AT_MOST]) + (f" and {more} more" if more > 0 else "")
