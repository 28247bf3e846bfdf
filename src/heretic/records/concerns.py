"""What a user should be told of an edited model's figures, judged by the original's."""

from __future__ import annotations

from collections.abc import Sequence

from heretic.records.statistics import paired_shares
from heretic.records.trial import Score

FEW = 0.03
"""Share of replies that may be broken, evade or decline late beyond the original's: a planted model
that is edited well has as many."""


def concerns(before: Sequence[Score], after: Sequence[Score], short: int) -> list[str]:
    """Clauses, one for each figure of an edited model that is clearly worse than the original's.

    Told are broken replies, replies that decline late, evasions, and capability. Refusals and
    divergences are not: the edit is judged by them anyway.

    Args:
        before, after: Scores of the original and of the edited model, as a report measures them.
        short: New tokens of a reply in the search.
    """
    others = {score.name: score for score in before}
    pairs = [(others[score.name], score) for score in after if score.name in others]
    found = [_concern(old, new, short) for old, new in pairs]
    return [text for text in found if text]


def _concern(old: Score, new: Score, short: int) -> str:
    """What to say of one figure; empty if nothing."""
    counts = [score.short for score in (old, new)]
    known = f"(of the original's: {counts[0]})"
    if new.name == "capability":
        test = paired_shares(old.values, new.values)
        if test is None or test.interval[1] >= 0:
            return ""
        low, high = test.interval
        change = f"{test.difference:+.3f} [{low:.3f}, {high:.3f}]"
        return f"the model chooses {counts[1]} right endings {known}, {change}"
    if new.name == "broken_replies":
        known = f"(of the original's: {counts[0]}{_of_answers(old)})"
        told = f"{counts[1]} replies are broken{_of_answers(new)} {known}"
        return told if _rose(*_sums(old, new)) else ""
    if new.name.startswith("late_"):
        told = f"{counts[1]} replies decline only after {short} tokens {known}"
        return told if _rose(*_sums(old, new)) else ""
    evading = [score.parts.get("evasion", 0.0) for score in (old, new)]
    total = new.total or 0
    if _rose(evading[0], evading[1], total):
        return f"{evading[1]:g} of {total} replies evade (of the original's: {evading[0]:g})"
    return ""


def _of_answers(score: Score) -> str:
    """How many replies do not refuse, where the score tells it: refusals hardly break."""
    return f", of {score.parts['answers']:g} answers" if "answers" in score.parts else ""


def _sums(old: Score, new: Score) -> tuple[float, float, int]:
    """Both counts, and of how many replies."""
    return sum(old.values), sum(new.values), len(new.values)


def _rose(before: float, after: float, total: int) -> bool:
    """Whether a count is higher by more than a few of so many replies."""
    return after - before > max(1, FEW * total)
