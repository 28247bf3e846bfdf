"""Plans tried: evaluated together, or one by one where that fails, and made into trials."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

from heretic.errors import is_of_interruption
from heretic.records.plan import Plan
from heretic.records.trial import Optimization, Score, Trial
from heretic.system.display import safe_line

Evaluate = Callable[[Sequence[Plan]], Sequence[tuple[Score, ...]]]
"""Evaluates plans together and returns the scores of each."""

_REASON_LENGTH = 300
_log = logging.getLogger(__name__)


def tried(
    evaluate: Evaluate, objectives: Sequence[Optimization], batch: Sequence[tuple[int, Plan]]
) -> Iterator[tuple[Trial, Exception | None]]:
    """Evaluate plans together; if that fails, one by one, so that only faulty plans fail.

    Args:
        objectives: How each score is optimised, in the order of the scores.
        batch: Numbers of trials, and their plans.

    Returns:
        Each trial, and the error of one that failed.
    """
    start = perf_counter()
    try:
        pairs = list(zip(batch, evaluate([plan for _, plan in batch]), strict=True))
    except Exception as error:  # one bad trial must not end a search of hours
        if is_of_interruption(error):
            raise
        if len(batch) == 1:
            yield _failed(*batch[0], error, perf_counter() - start), error
            return
        _log.info("A batch of %d failed and is evaluated one by one", len(batch), exc_info=True)
        for one in batch:
            yield from tried(evaluate, objectives, [one])
        return
    seconds = (perf_counter() - start) / len(batch)
    for (number, plan), scores in pairs:
        try:
            _check(scores, objectives)
        except ValueError as error:  # the other plans' scores are still valid
            yield _failed(number, plan, error, seconds), error
        else:
            yield Trial(number, plan, tuple(scores), seconds=seconds), None


def _check(scores: Sequence[Score], objectives: Sequence[Optimization]) -> None:
    searched, found = (
        [choice for choice in choices if choice != "none"]
        for choices in (objectives, [score.optimization for score in scores])
    )
    if searched != found:
        raise ValueError(f"the scores do not match the objectives: {scores}")
    for score in scores:
        if not score.is_sound:
            raise ValueError(f"score {score.name} is {score.value}")


def _failed(number: int, plan: Plan, error: Exception, seconds: float) -> Trial:
    """A trial that failed; the log gets the traceback."""
    _log.warning("Trial %d failed", number, exc_info=error)
    return Trial(number, plan, (), "failed", _reason(error), seconds)


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = safe_line(str(error)) or "no message"
    return f"{type(error).__name__}: {text}"[:_REASON_LENGTH]
