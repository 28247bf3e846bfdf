"""What benchmarks gave, as plain records, and the difference between two models.

Both models answer the same documents, so a difference is taken document by document: its interval
is much narrower than that of two independent figures.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

Z = 1.959963984540054
"""Normal quantile of a two-sided interval of 95%."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """Documents whose mean enters a figure with a weight; the weights of a figure add up to 1.

    Attributes:
        values: The metric of each document, in the data set's order.
    """

    weight: float
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of one model.

    Attributes:
        task: The task, or the group of tasks.
        metric: Its name, with the filter of the answer in brackets where there is one.
        value: The figure as the harness gives it; None if it is no number.
        stderr: Its standard error, where known.
        n: Documents.
        higher_is_better: None if the task does not say.
        strata: The documents' own values, where the figure is a mean of them; else empty.
    """

    task: str
    metric: str
    value: float | None
    stderr: float | None
    n: int
    higher_is_better: bool | None = None
    strata: tuple[Stratum, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` of a measurement wrote.

        Raises:
            TypeError, KeyError: It is something else.
        """
        strata = tuple(Stratum(row["weight"], tuple(row["values"])) for row in data["strata"])
        return cls(**{**data, "strata": strata})


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one task gave on one model.

    Attributes:
        task: As it was asked for; a group or a tag gives figures of several tasks.
        key: Digest of all that the figures depend on.
        batch_size: Rows per forward pass.
        seconds: How long it took.
        versions: Of the tasks, as the harness states them.
        limit: Documents of each task that were taken at most; None for all, 0 where a file does not
            say.
    """

    task: str
    key: str
    metrics: tuple[Metric, ...]
    batch_size: int
    seconds: float
    versions: Mapping[str, Any]
    limit: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            TypeError, KeyError: It is something else.
        """
        metrics = tuple(map(Metric.from_dict, data["metrics"]))
        return cls(**{"limit": 0, **data, "metrics": metrics})


@dataclass(frozen=True, slots=True)
class PairedMetric:
    """One line of the table: a figure of both models.

    Attributes:
        original, edited: Figures; None where a model was not measured.
        difference: Edited less original.
        interval: Its 95% interval.
        paired: Whether the interval was taken document by document.
    """

    task: str
    metric: str
    n: int
    higher_is_better: bool | None
    original: float | None
    original_stderr: float | None
    edited: float | None
    edited_stderr: float | None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    paired: bool = False

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or empty where the interval holds 0 or the task names no better."""
        if self.interval is None or self.higher_is_better is None:
            return ""
        low, high = self.interval
        if low <= 0 <= high:
            return ""
        return "better" if (low > 0) == self.higher_is_better else "worse"

    def texts(self) -> tuple[str, ...]:
        """Task, metric, documents, both figures, difference and its interval, to be read."""
        interval = ""
        if self.interval is not None:
            low, high = self.interval
            interval = f"{low:+.4f} to {high:+.4f}" + ("" if self.paired else "*")
        return (
            *(self.task, self.metric, str(self.n)),
            _figure(self.original, self.original_stderr),
            _figure(self.edited, self.edited_stderr),
            "" if self.difference is None else f"{self.difference:+.4f}",
            interval,
        )


def _figure(value: float | None, stderr: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" + ("" if stderr is None else f" ± {stderr:.4f}")


def how_compared(rows: Sequence[PairedMetric]) -> str:
    """What the figures of `PairedMetric.texts` mean."""
    apart = any(row.interval and not row.paired for row in rows)
    return "± is the standard error. The interval is of the difference, document by document" + (
        " (* models apart)." if apart else "."
    )


def compare(original: Measurement | None, edited: Measurement | None) -> list[PairedMetric]:
    """The figures of a task on both models; either may be missing."""
    before = {(row.task, row.metric): row for row in (original.metrics if original else ())}
    after = {(row.task, row.metric): row for row in (edited.metrics if edited else ())}
    return [_row(before.get(key), after.get(key)) for key in {**before, **after}]


def _row(original: Metric | None, edited: Metric | None) -> PairedMetric:
    known = edited or original
    assert known is not None
    row = PairedMetric(
        task=known.task,
        metric=known.metric,
        n=known.n,
        higher_is_better=known.higher_is_better,
        original=None if original is None else original.value,
        original_stderr=None if original is None else original.stderr,
        edited=None if edited is None else edited.value,
        edited_stderr=None if edited is None else edited.stderr,
    )
    if row.original is None or row.edited is None or original is None or edited is None:
        return row
    paired = paired_interval(original.strata, edited.strata)
    interval = paired or _unpaired_interval(original, edited)
    values = {**asdict(row), "difference": row.edited - row.original, "interval": interval}
    return PairedMetric(**{**values, "paired": paired is not None})


def paired_interval(
    original: Sequence[Stratum], edited: Sequence[Stratum]
) -> tuple[float, float] | None:
    """95% interval of the difference of two figures over the same documents.

    Of right and wrong answers: the adjusted Wald interval for paired proportions (Agresti and Min,
    2005), which adds half a document to each of the four outcomes, so that a few documents without
    a change do not pass for certainty. Else normal, from the differences' own spread.

    Args:
        original: The documents' values; of several strata where a group weighs its tasks.
        edited: The same for the other model.

    Returns:
        Lower and upper end; None where documents cannot be paired, or are too few.
    """
    shape = [(stratum.weight, len(stratum.values)) for stratum in original]
    if not shape or shape != [(stratum.weight, len(stratum.values)) for stratum in edited]:
        return None
    pairs = list(zip(original, edited, strict=True))
    if len(pairs) == 1 and all(
        value in {0, 1} for pair in pairs for s in pair for value in s.values
    ):
        return _proportions(pairs[0][0].values, pairs[0][1].values)
    centre = variance = 0.0
    for before, after in pairs:
        changes = [b - a for a, b in zip(before.values, after.values, strict=True)]
        if len(changes) < 2:
            return None
        centre += before.weight * statistics.fmean(changes)
        variance += before.weight**2 * statistics.variance(changes) / len(changes)
    return _around(centre, math.sqrt(variance))


def _proportions(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    gained = sum(b > a for a, b in zip(before, after, strict=True)) + 0.5
    lost = sum(b < a for a, b in zip(before, after, strict=True)) + 0.5
    n = len(before) + 2
    spread = math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return _around((gained - lost) / n, spread)


def _unpaired_interval(original: Metric, edited: Metric) -> tuple[float, float] | None:
    """As if each model had had documents of its own: wider than need be, never too narrow."""
    if None in {original.stderr, edited.stderr, original.value, edited.value}:
        return None
    assert original.stderr is not None
    assert edited.stderr is not None
    assert original.value is not None
    assert edited.value is not None
    return _around(edited.value - original.value, math.hypot(original.stderr, edited.stderr))


def _around(centre: float, spread: float) -> tuple[float, float]:
    return centre - Z * spread, centre + Z * spread


def standard_error(strata: Sequence[Stratum]) -> float | None:
    """Standard error of the weighted mean of strata; None where a stratum has a single document."""
    if not strata or any(len(stratum.values) < 2 for stratum in strata):
        return None
    return math.sqrt(
        sum(s.weight**2 * statistics.variance(s.values) / len(s.values) for s in strata)
    )
