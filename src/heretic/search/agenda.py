"""What comes next in a search: which start plans wait, and the seeds of proposals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from heretic.records.plan import Plan
from heretic.records.trial import Trial
from heretic.runs.journal import INTERRUPTED

MAX_INTERRUPTIONS = 3
"""A start plan that was interrupted this often is skipped: it may be what kills the process."""

PLACES_PER_PROPOSAL = 16
"""Places in an asynchronous search for each plan of those that are proposed together."""


def proposed_together(places: int) -> int:
    """How many plans an asynchronous search proposes at a time.

    A proposal then misses at most a sixteenth more results than it misses in any case: those of the
    plans that are being evaluated.

    Args:
        places: How many plans are evaluated at a time.
    """
    return max(1, places // PLACES_PER_PROPOSAL)


def waiting_start_plans(
    start_plans: Sequence[Plan], trials: Sequence[Trial], pending: Collection[Plan], in_pool: bool
) -> list[Plan]:
    """Start plans that are still to be evaluated, in their order.

    Args:
        trials: Those that have ended.
        pending: Plans that are being evaluated.
        in_pool: Whether others evaluate plans: what kills them is found by the pool, and an
            interruption says nothing of a plan.
    """
    done = {trial.plan for trial in trials if trial.failure != INTERRUPTED} | set(pending)
    cut_short = interruptions(trials)
    return [
        plan
        for plan in dict.fromkeys(start_plans)
        if plan not in done and (in_pool or cut_short[plan] < MAX_INTERRUPTIONS)
    ]


def interruptions(trials: Sequence[Trial]) -> Counter[Plan]:
    """How often each plan was interrupted."""
    return Counter(trial.plan for trial in trials if trial.failure == INTERRUPTED)


def next_seed(trials: Sequence[Trial], ordinals: Mapping[int, int]) -> tuple[int, int]:
    """Ordinal and salt of the next proposal in a search that waits for each batch.

    The ordinal is the number of trials before it, without interrupted ones: it is the same however
    often the search was interrupted. Trials of a pool end in another order, and keep their
    ordinals; after them it is larger than each of theirs, so that no seed is used twice.

    Args:
        trials: Those that have ended, by number.
        ordinals: What was kept, by the trial's number.
    """
    ordinal, last = 0, -1
    for trial in trials:
        if trial.failure != INTERRUPTED:
            ordinal, last = max(ordinal, ordinals.get(trial.number, 0)) + 1, trial.number
    interrupted = Counter(trial.plan for trial in trials if trial.number > last)
    # A plan is tried again after one interruption; after two it may be what kills the process.
    return ordinal, max([1, *interrupted.values()]) - 1
