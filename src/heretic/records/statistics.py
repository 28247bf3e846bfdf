"""Uncertainty of figures: intervals of rates and means, and tests between two models.

The statistics are scipy's; this module chooses which of them fits which figures. All random draws
are seeded, so equal figures give equal intervals.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from heretic.records.trial import Score, ends_text

Interval = tuple[float, float]

CONFIDENCE = 0.95
SIGNIFICANT = 1 - CONFIDENCE
"""Differences with a p-value of at least this are not significant."""

RESAMPLES = 9_999
"""Number of bootstrap samples and of permutations. A permutation test counts the observed data as
one more, so its p-values are multiples of 1/10,000."""


@dataclass(frozen=True, slots=True)
class Paired:
    """The difference between two models on the same prompts.

    Attributes:
        difference: Mean of second - first.
        interval: Bootstrap interval of the difference, at `CONFIDENCE`.
        p: Two-sided p-value, by McNemar's exact test for rates and by a sign-flip permutation test
            for means.
    """

    difference: float
    interval: Interval
    p: float

    @property
    def tells_apart(self) -> bool:
        """Whether the difference is significant."""
        return self.p < SIGNIFICANT


def is_worse(first: Score, second: Score) -> bool:
    """Whether a score is worse on other prompts than chance explains.

    The interval of the difference of two independent samples is made from their own intervals, by
    the method of variance estimates recovery (Zou and Donner 2008).
    """
    if first.interval is None or second.interval is None or first.optimization == "none":
        return False
    better, worse = (first, second) if first.optimization == "minimize" else (second, first)
    assert better.interval is not None
    assert worse.interval is not None
    above, below = better.interval[1] - better.value, worse.value - worse.interval[0]
    return worse.value - better.value > math.hypot(above, below)


def interval(values: Sequence[float]) -> Interval | None:
    """Confidence interval of the mean of the values, at `CONFIDENCE`.

    For booleans, whose mean is a rate, it is Wilson's (1927); else that of the bias-corrected and
    accelerated bootstrap (Efron 1987), which takes the values as independent draws.

    Args:
        values: One per prompt.

    Returns:
        Lower and upper end; None for fewer than two values or a value that is not finite.
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    if is_rate(values):
        return wilson(round(sum(values)), len(values))
    return _bootstrap(tuple(map(float, values)))


def wilson(count: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's (1927) confidence interval of the rate `count` / `total`."""
    from scipy import stats

    found = stats.binomtest(count, total).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def after_choice(score: Score, compared: int) -> Score:
    """A score of a trial that was chosen among many by just such scores, with a wider interval.

    The best of many figures looks better than it is. The interval is made as wide as is needed for
    those of all trials to hold together at `CONFIDENCE` (Bonferroni; Dunn 1961). Of means, whose
    bootstrap has too few samples so far out, it is stretched as a normal distribution's would be.

    Args:
        compared: Number of trials that the choice was made among.
    """
    if score.interval is None or compared < 2:
        return score
    confidence = 1 - SIGNIFICANT / compared
    values, (low, high) = score.values, score.interval
    if values and set(values) <= {0.0, 1.0}:
        return replace(score, interval=wilson(round(sum(values)), len(values), confidence))
    from scipy import stats

    wider = stats.norm.ppf((1 + confidence) / 2) / stats.norm.ppf((1 + CONFIDENCE) / 2)
    low, high = (score.value + (end - score.value) * float(wider) for end in (low, high))
    least = 0.0 if values and min(values) >= 0 else -math.inf
    return replace(score, interval=(max(low, least), high))


def paired(first: Sequence[float], second: Sequence[float]) -> Paired | None:
    """Compare two models by their values on the same prompts in the same order.

    Returns:
        None if the values cannot be paired: unequal numbers, fewer than two, or not finite.
    """
    pair = tuple(map(float, first)), tuple(map(float, second))
    p = _p_value(*pair)
    if p is None:
        return None
    changes = _changes(*pair)
    return Paired(sum(changes) / len(changes), _bootstrap(changes), p)


def difference_text(before: Score | None, after: Score | None) -> str:
    """The change of a score from prompt to prompt with its interval, e.g. `-0.02 [-0.05, 0]`.

    Returns:
        Empty text where the scores cannot be paired.
    """
    if before is None or after is None:
        return ""
    pair = before.values, after.values
    found = paired_shares(*pair) or paired(*pair)
    if found is None:
        return ""
    return f"{found.difference:+.3g} [{ends_text(found.interval)}]"


def paired_shares(first: Sequence[float], second: Sequence[float]) -> Paired | None:
    """Compare two shares, such as of right answers, on the same items in the same order.

    The p-value is that of McNemar's exact test, as in `paired`. The interval is Bonett and Price's
    (2012), the adjusted Wald interval for a difference of paired proportions, which Fagerland et
    al. (2014) recommend. A bootstrap would give two models that agree on all items an interval of
    no width.

    Args:
        first, second: 0 or 1 (or booleans) for each item.

    Returns:
        None if they cannot be paired: unequal numbers, fewer than two, or not 0 or 1.
    """
    from scipy import stats

    pair = tuple(map(float, first)), tuple(map(float, second))
    if not all(value in (0.0, 1.0) for value in (*pair[0], *pair[1])):
        return None
    p = _p_value(*pair)
    if p is None:
        return None
    changes = _changes(*pair)
    total = len(changes) + 2
    gained, lost = ((changes.count(sign) + 1) / total for sign in (1.0, -1.0))
    difference = gained - lost
    reach = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt(
        (gained + lost - difference**2) / total
    )
    ends = max(-1.0, float(difference - reach)), min(1.0, float(difference + reach))
    return Paired(sum(changes) / len(changes), ends, p)


def _changes(first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
    return tuple(b - a for a, b in zip(first, second, strict=True))


@lru_cache(maxsize=4096)
def _p_value(first: tuple[float, ...], second: tuple[float, ...]) -> float | None:
    """The p-value of the paired test; None where `paired` returns None."""
    from scipy import stats

    if len(first) != len(second) or len(first) < 2 or not all(map(math.isfinite, first + second)):
        return None
    changes = _changes(first, second)
    if not any(changes):
        return 1.0
    if all(value in (0.0, 1.0) for value in first + second):
        gained, lost = (changes.count(sign) for sign in (1.0, -1.0))
        return float(stats.binomtest(gained, gained + lost).pvalue)
    found = stats.permutation_test(
        (changes,),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=0,
    )
    return float(found.pvalue)


def indistinguishable(first: Sequence[Score], second: Sequence[Score]) -> bool:
    """Whether two trials differ significantly in no objective, by paired tests on their prompts.

    Each objective is tested separately. Trials whose scores have no values per prompt count as
    different.
    """
    others = {score.name: score.values for score in second}
    objectives = [score for score in first if score.objective() is not None]
    found = (_p_value(score.values, others.get(score.name, ())) for score in objectives)
    return bool(objectives) and all(p is not None and p >= SIGNIFICANT for p in found)


def is_rate(values: Sequence[float]) -> bool:
    """Whether the mean of the values is a rate: all of them are booleans."""
    return all(isinstance(value, bool) for value in values)


@lru_cache(maxsize=4096)
def _bootstrap(values: tuple[float, ...]) -> Interval:
    from scipy import stats

    if len(set(values)) == 1:  # nothing to resample
        return values[0], values[0]
    for method in ("BCa", "percentile"):  # BCa gives NaN where nearly all values are equal
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = stats.bootstrap(
                (values,),
                _mean,
                vectorized=True,
                confidence_level=CONFIDENCE,
                n_resamples=RESAMPLES,
                method=method,
                rng=0,
            ).confidence_interval
        low, high = float(found.low), float(found.high)
        if math.isfinite(low) and math.isfinite(high):
            break
    return low, high


def _mean(values: Any, axis: int = -1) -> Any:
    return values.mean(axis=axis)
