"""Read prompt sets from the Hub, a folder written by `save_to_disk`, or a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.config.tables import DatasetSpecification
from heretic.errors import PromptError
from heretic.system.hub import is_local

if TYPE_CHECKING:
    from datasets import Dataset

FILE_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}

HELD_OUT = 100
"""Largest number of held-out prompts of each kind, on which only the chosen trial is scored."""

_SHOWN_AT_MOST = 12
_LOCAL = "Or name a local file or folder instead."


@dataclass(frozen=True, slots=True)
class Prompt:
    """A user message and the system prompt that goes with it; None without one."""

    user: str
    system: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluationPrompts:
    """Prompts to score on: the evaluation splits, or held-out ones.

    Attributes:
        good, bad: The two splits.
        more: Sets that scorers bring along, by name.
    """

    good: Sequence[Prompt]
    bad: Sequence[Prompt]
    more: Mapping[str, Sequence[Prompt]] = field(default_factory=dict)

    def by_name(self) -> dict[str, Sequence[Prompt]]:
        """All sets."""
        return {"good": self.good, "bad": self.bad, **self.more}


@dataclass(frozen=True, slots=True)
class PromptSets:
    """All prompts of a run.

    Attributes:
        good, bad: The splits on which directions are found.
        evaluation: The splits on which trials are scored.
        held_out: Prompts that neither directions nor search have seen; the chosen trial is scored
            on them. None where there are too few.
        protected: Prompts that are like the bad ones, on which the model should stay as it was.
    """

    good: Sequence[Prompt]
    bad: Sequence[Prompt]
    evaluation: EvaluationPrompts
    held_out: EvaluationPrompts | None = None
    protected: Sequence[Prompt] = ()


@dataclass(frozen=True)
class _Source:
    """Splits of a data set. With `any_split` the only split is used for every name."""

    splits: Mapping[str, Dataset]
    any_split: bool = False


def load(specification: DatasetSpecification, default_system: str | None = None) -> list[Prompt]:
    """Read the prompts of a set, in order: prefix + text + suffix, with the set's system prompt.

    Args:
        specification: Names the data set, the split with its slice, and the column.
        default_system: System prompt for a specification without one.

    Raises:
        PromptError: The set, split or column does not exist (the message lists those that do), or
            the set has no prompt.
    """
    system = default_system
    if specification.system_prompt is not None:
        system = specification.system_prompt
    texts = _texts(specification)
    return [Prompt(f"{specification.prefix}{text}{specification.suffix}", system) for text in texts]


def held_out(
    explicit: DatasetSpecification | None,
    used: Sequence[tuple[DatasetSpecification, Sequence[Prompt]]],
    default_system: str | None = None,
    seen: Sequence[Prompt] = (),
) -> list[Prompt]:
    """Prompts that were used neither for the directions nor in the search.

    Args:
        explicit: The set to read. None takes the rows after those used in the same splits, at most
            `HELD_OUT` of them.
        used: The sets of the same kind that are in use, with their prompts, which are left out.
            Rows after them are taken in this order.
        default_system: System prompt for a specification without one.
        seen: More prompts to leave out.

    Returns:
        Few or no prompts where the sets have no further rows, or where their slices do not end at
        a number of rows.

    Raises:
        PromptError: The explicit set cannot be read.
    """
    known = [*(rows for _, rows in used), seen]
    if explicit is not None:
        return _without(load(explicit, default_system), known)
    found = []
    for specification, _ in used:
        rest = _rest_of(specification)
        if rest is not None:
            with suppress(PromptError):  # no row is left
                found += _without(load(rest, default_system), known)
    return list(dict.fromkeys(found))[:HELD_OUT]


def _without(prompts: Sequence[Prompt], sets: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    known = {text for rows in sets for text in shared_prompts(prompts, rows)}
    return [prompt for prompt in prompts if prompt.user not in known]


def _rest_of(specification: DatasetSpecification) -> DatasetSpecification | None:
    """The rows after a slice that ends at a number of rows; None for any other slice."""
    match = re.fullmatch(r"([^\[\]+]*)\[\d*:(\d+)\]", specification.split.strip())
    if match is None:
        return None
    name, end = match[1], int(match[2])
    return specification.model_copy(update={"split": f"{name}[{end}:{end + HELD_OUT}]"})


def shared_prompts(first: Iterable[Prompt], second: Iterable[Prompt]) -> list[str]:
    """The prompts that two sets share, in the order of the first; case and white space are ignored.

    Prompts for finding directions and prompts for evaluation must share none.
    """
    known = {" ".join(prompt.user.lower().split()) for prompt in second}
    return [prompt.user for prompt in first if " ".join(prompt.user.lower().split()) in known]


def _texts(specification: DatasetSpecification) -> list[str]:
    name = specification.dataset
    source = _open(name, specification.commit)
    rows = _select(source, specification.split, name)
    column = specification.column
    if column not in rows.column_names:
        raise PromptError(
            f"Prompt set {name} has no column {column!r}; its columns are "
            f"{_listed(rows.column_names)}.",
            remedy="Set `column` to the one that holds the prompts.",
        )
    values = list(rows[column])
    wrong = next((value for value in values if not isinstance(value, str | None)), None)
    if wrong is not None:
        raise PromptError(
            f"Column {column!r} of prompt set {name} holds {type(wrong).__name__}, not text; its "
            f"columns are {_listed(rows.column_names)}.",
            remedy="Set `column` to the one that holds the prompts.",
        )
    texts = [value for value in values if value and value.strip()]
    if not texts:
        lengths = ", ".join(f"{split} ({len(data)} rows)" for split, data in source.splits.items())
        wanted = f"split {specification.split}, " if specification.split else ""
        raise PromptError(
            f"Prompt set {name}, {wanted}is empty; it has {lengths}.",
            remedy="Set `split` to rows that exist.",
        )
    return texts


def _open(name: str, commit: str | None) -> _Source:
    """The splits of a file, a folder, or a data set on the Hub."""
    if not name:
        raise PromptError("A prompt set has no name.", remedy="Set `dataset`.")
    path = Path(name).expanduser()
    if path.is_file():
        return _open_file(path)
    if path.is_dir():
        return _open_folder(path)
    if is_local(name) or path.suffix.lower() in FILE_FORMATS:
        raise PromptError(
            f"Prompt file {name} does not exist{_neighbours(path)}.",
            remedy="Set `dataset` to a file that exists.",
        )
    return _open_hub(name, commit)


def _open_file(path: Path) -> _Source:
    from datasets import Dataset, load_dataset

    kind = FILE_FORMATS.get(path.suffix.lower())
    if kind is None:
        raise PromptError(
            f"Prompt file {path} has no known format.",
            remedy=f"Known formats are {_listed(FILE_FORMATS)}.",
        )
    try:
        if kind == "text":
            # not splitlines(), which also splits at separators that occur inside prompts
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            data = Dataset.from_dict({"text": [line for line in lines if line.strip()]})
        elif path.stat().st_size == 0:
            raise _empty(path)
        else:
            options: dict[str, Any] = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
            data = _quietly(
                load_dataset, kind, data_files=str(path.resolve()), split="train", **options
            )
    except PromptError:
        raise
    except Exception as error:  # the readers of the formats raise many kinds of errors
        if "corresponds to no data" in str(error):
            raise _empty(path) from error
        raise PromptError(
            f"Prompt file {path} cannot be read: {_first_line(error)}",
            remedy="Check that its content is what its ending says.",
        ) from error
    return _Source({"train": data}, any_split=True)


def _open_folder(path: Path) -> _Source:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        data = _quietly(load_from_disk, str(path)) if saved else _quietly(load_dataset, str(path))
    except Exception as error:
        raise PromptError(
            f"Prompt folder {path} cannot be read: {_first_line(error)}",
            remedy="It should be written by save_to_disk, or hold data files.",
        ) from error
    if isinstance(data, DatasetDict):
        return _Source({str(split): rows for split, rows in data.items()})
    assert isinstance(data, Dataset)
    # `data.split` keeps the slice it was made with: train[:100]
    split = str(data.split).partition("[")[0] if data.split is not None else ""
    return _Source({split or "train": data}, any_split=not split)


def _open_hub(name: str, commit: str | None) -> _Source:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    wanted = f"{name} at revision {commit}" if commit else name
    try:
        data = _quietly(load_dataset, name, revision=commit)
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
        raise PromptError(f"Prompt set {wanted} cannot be read: {_first_line(error)}") from error
    return _Source({str(split): rows for split, rows in data.items()})


def _select(source: _Source, split: str, name: str) -> Dataset:
    """The rows of a split with its slices, such as `train[:400]` or `[10%:]`."""
    from datasets import ReadInstruction, concatenate_datasets

    splits = dict(source.splits)
    exist = f"its splits are {_listed(splits)}"
    if not split or split.startswith("["):
        if len(splits) > 1:
            raise PromptError(
                f"Prompt set {name} has several splits, and {split!r} names none; {exist}.",
                remedy=f"Set `split` to, for example, {next(iter(splits))}{split}.",
            )
        split = f"{next(iter(splits))}{split}"
    try:
        instruction = ReadInstruction.from_spec(split)
        if source.any_split:
            only = next(iter(splits.values()))
            splits = dict.fromkeys(_split_names(split), only)
        parts = instruction.to_absolute({key: len(data) for key, data in splits.items()})
    except (ValueError, AssertionError) as error:
        unknown = "Unknown split" in str(error)
        problem = f"has no split {split!r}" if unknown else f"cannot be sliced by {split!r}"
        raise PromptError(
            f"Prompt set {name} {problem}; {exist}.",
            remedy="Set `split` to one that exists."
            if unknown
            else "Slices look like train[:400], [10%:] or test[10:20].",
        ) from error
    # lists, because `select` refuses an empty range after the last row
    ranges = [(part.splitname, list(range(part.from_, part.to))) for part in parts]
    chosen = [splits[key].select(rows) for key, rows in ranges]
    return concatenate_datasets(chosen) if len(chosen) > 1 else chosen[0]


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
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in FILE_FORMATS)
    return f"; its folder has {_listed(names)}" if names else "; its folder has no data files"


def _empty(path: Path) -> PromptError:
    return PromptError(
        f"Prompt file {path} is empty.",
        remedy="Put at least one prompt in it, or name another file.",
    )


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
