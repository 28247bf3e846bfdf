"""Results of benchmarks as plain records, and the difference between two models.

Both models answer the same documents, so differences are taken document by document. Their interval
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
    """Documents whose mean is one term of a weighted sum, such as one task of a group.

    Attributes:
        weight: Weight of their mean; the weights of a figure add up to 1.
        values: The metric's value for each document, in the data set's order.
    """

    weight: float
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return statistics.fmean(self.values)


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of one model.

    Attributes:
        task: The task, or the group of tasks.
        metric: Name of the metric, with the filter of the answer, if any, in brackets.
        value: The figure as the harness gives it; None if it is not finite.
        stderr: Its standard error; None if unknown.
        n: Number of documents.
        higher_is_better: None if the task does not say.
        strata: The values of the documents, if the figure is a mean of them; else empty.
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
        """Read a metric that `Measurement.to_dict` wrote.

        Raises:
            TypeError, KeyError: The data have another form.
        """
        strata = tuple(Stratum(row["weight"], tuple(row["values"])) for row in data["strata"])
        return cls(**{**data, "strata": strata})


@dataclass(frozen=True, slots=True)
class Measurement:
    """The results of one task on one model.

    Attributes:
        task: Name that was asked for; a group or tag gives figures of several tasks.
        key: Digest of everything that the figures depend on.
        metrics: The figures.
        batch_size: Rows per forward pass.
        seconds: Wall-clock time.
        versions: Task to its version, as the harness states it.
        limit: Largest number of documents of each task; None for all, 0 if the file does not say.
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
            TypeError, KeyError: The data have another form.
        """
        metrics = tuple(map(Metric.from_dict, data["metrics"]))
        return cls(**{"limit": 0, **data, "metrics": metrics})


@dataclass(frozen=True, slots=True)
class PairedMetric:
    """One row of the comparison: a figure of both models.

    Attributes:
        task: The task, or the group of tasks.
        metric: Name of the metric.
        n: Number of documents.
        higher_is_better: None if the task does not say.
        original: Figure of the original model; None if it was not measured.
        original_stderr: Its standard error; None if unknown.
        edited: Figure of the edited model; None if it was not measured.
        edited_stderr: Its standard error; None if unknown.
        difference: edited - original; None if one of them is missing.
        interval: 95% interval of the difference; None if unknown.
        paired: Whether the interval was computed document by document.
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
        """`better`, `worse`, or empty if the interval contains 0 or neither direction is better."""
        if self.interval is None or self.higher_is_better is None:
            return ""
        low, high = self.interval
        if low <= 0 <= high:
            return ""
        return "better" if (low > 0) == self.higher_is_better else "worse"

    def texts(self) -> tuple[str, ...]:
        """Cells of a table: task, metric, documents, both figures, difference and its interval."""
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
    """A sentence that explains the figures of `PairedMetric.texts`."""
    apart = any(row.interval and not row.paired for row in rows)
    return "± is the standard error. The interval is of the difference, document by document" + (
        " (* models apart)." if apart else "."
    )


def compare(original: Measurement | None, edited: Measurement | None) -> list[PairedMetric]:
    """The figures of a task on both models; one of them may be None."""
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
    """95% interval of the difference between two figures on the same documents.

    For right and wrong answers it is the adjusted Wald interval for paired proportions (Agresti and
    Min, 2005). It adds half a document to each of the four outcomes, so that the interval of a few
    documents without a change has a width above 0. Else it is the normal interval, with the
    standard error of the differences.

    Args:
        original: The original model's values; several strata where a group weights its tasks.
        edited: The edited model's values of the same documents.

    Returns:
        Lower and upper end; None if the documents cannot be paired, or are too few.
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
    """95% interval as for independent documents, which is wider than the paired one."""
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
    """Standard error of the strata's weighted mean; None if one has fewer than two documents."""
    if not strata or any(len(stratum.values) < 2 for stratum in strata):
        return None
    return math.sqrt(
        sum(s.weight**2 * statistics.variance(s.values) / len(s.values) for s in strata)
    )
