"""Figures by category of the prompts: how many of each count, before and after an edit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from heretic.records.category_names import NO_CATEGORY, category_key
from heretic.records.statistics import Interval, interval, wilson
from heretic.records.trial import ends_text


@dataclass(frozen=True, slots=True)
class Share:
    """How many prompts of a category count.

    Attributes:
        count: Sum of the values, which need not be an integer.
        interval: 95% confidence interval of `count` / number of prompts: Wilson's if every value is
            0 or 1, else the bootstrap's. None for a single value of another kind.
    """

    count: float
    interval: Interval | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Share:
        """The share of prompts with these values, each from 0 to 1; at least one value."""
        if all(value in (0.0, 1.0) for value in values):
            return cls(float(sum(values)), wilson(round(sum(values)), len(values)))
        return cls(float(sum(values)), interval(values))

    def shown(self, total: int) -> str:
        """The form that people read, e.g. `3/20 [0.052, 0.36]`."""
        text = f"{self.count:g}/{total}"
        return text if self.interval is None else f"{text} [{ends_text(self.interval)}]"


@dataclass(frozen=True, slots=True)
class CategoryRow:
    """One category: its prompts, and how many of them count before and after the edit."""

    category: str
    n: int
    before: Share
    after: Share

    def texts(self) -> tuple[str, str, str, str]:
        """The cells of its row: category, number of prompts, before, after."""
        return self.category, str(self.n), self.before.shown(self.n), self.after.shown(self.n)


@dataclass(frozen=True, slots=True)
class CategoryTable:
    """A score by category.

    Attributes:
        score: Name of the score.
        prompts: Which prompts: `evaluation`, `held_out`, or `spared` for those of the categories
            that the setting `keep` names.
        rows: In the order in which the categories first appear among the prompts.
    """

    score: str
    prompts: str
    rows: tuple[CategoryRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def category_rows(
    categories: Iterable[str | None], before: Sequence[float], after: Sequence[float]
) -> tuple[CategoryRow, ...]:
    """Figures of each category, in the order in which the categories first appear.

    Args:
        categories: The category of each prompt; None counts as `NO_CATEGORY`.
        before: The value of each prompt for the unedited model, from 0 to 1.
        after: The value of each prompt for the edited model, in the same order.

    Raises:
        ValueError: The three have different lengths.
    """
    names: dict[str, str] = {}
    values: dict[str, tuple[list[float], list[float]]] = {}
    for category, old, new in zip(categories, before, after, strict=True):
        name = category or NO_CATEGORY
        key = category_key(name)
        names.setdefault(key, name)
        pair = values.setdefault(key, ([], []))
        pair[0].append(old)
        pair[1].append(new)
    return tuple(
        CategoryRow(names[key], len(old), Share.of(old), Share.of(new))
        for key, (old, new) in values.items()
    )
