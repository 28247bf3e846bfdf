"""Prompt sets from the Hub, from a folder, or from a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from heretic.config.tables import (
    Datasets,
    DatasetSpecification,
    ItemSpecification,
    each_of,
)
from heretic.errors import PromptError
from heretic.prompts.files import FILE_FORMATS
from heretic.prompts.items import columns_of, items_of
from heretic.prompts.places import check_characters, read_columns, read_texts

__all__ = [
    "FILE_FORMATS",
    "HELD_OUT",
    "EvaluationPrompts",
    "Item",
    "Prompt",
    "PromptSets",
    "held_out",
    "load",
    "shared_prompts",
]

HELD_OUT = 100
"""Largest number of held-out prompts of each kind, on which only the chosen trial is scored."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A user message and the system prompt that goes with it; None without one.

    `category` is what its set says of it, None without categories. Prompts that differ in nothing
    else are equal: the model is given the same.
    """

    user: str
    system: str | None = None
    category: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Item(Prompt):
    """A context, which is plain text and no message, with its candidate endings.

    Attributes:
        endings: At least one, all different.
        right: Number of the right one, counted from 0.
        delimiter: Text between the context and an ending.
    """

    endings: tuple[str, ...] = ()
    right: int = 0
    delimiter: str = " "


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
        spared: Evaluation and held-out prompts of the categories that the setting `keep` names: the
            search does not use them, and the chosen trial is scored on them.
    """

    good: Sequence[Prompt]
    bad: Sequence[Prompt]
    evaluation: EvaluationPrompts
    held_out: EvaluationPrompts | None = None
    protected: Sequence[Prompt] = ()
    spared: Sequence[Prompt] = ()


def load(datasets: Datasets, default_system: str | None = None) -> list[Prompt]:
    """Read the prompts of a set, in order: prefix + text + suffix, with the set's system prompt.

    Args:
        datasets: The data set, or several that follow one another: each names the split with its
            slice, and the column. Those of items give `Item`s, in which prefix and suffix belong
            to the context.
        default_system: System prompt for a specification without one.

    Raises:
        PromptError: The set, split or column does not exist (the message lists those that do), or
            the set has no prompt; or a row is no item, where these are items.
    """
    return [prompt for part in each_of(datasets) for prompt in _prompts_of(part, default_system)]


def _prompts_of(specification: DatasetSpecification, default_system: str | None) -> list[Prompt]:
    """The prompts of one data set."""
    if isinstance(specification, ItemSpecification):
        return [*_items(specification)]
    system = default_system
    if specification.system_prompt is not None:
        system = specification.system_prompt
    return [
        Prompt(f"{specification.prefix}{text}{specification.suffix}", system, category)
        for text, category in read_texts(specification)
    ]


def _items(specification: ItemSpecification) -> list[Item]:
    columns = read_columns(specification, columns_of(specification))
    found = []
    for context, endings, right in items_of(specification, columns):
        for text in (context, *endings):
            check_characters(text, specification.dataset)
        found.append(Item(context, endings=endings, right=right, delimiter=specification.delimiter))
    return found


def held_out(
    explicit: Datasets | None,
    used: Sequence[tuple[Datasets, Sequence[Prompt]]],
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
    for specification in (part for datasets, _ in used for part in each_of(datasets)):
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
