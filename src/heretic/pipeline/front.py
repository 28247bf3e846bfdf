"""Warns of figures on a front that do not mean what they seem to: told when a search ends."""

from __future__ import annotations

from collections.abc import Sequence

from heretic.records.selection import first_objective
from heretic.records.trial import Score, Trial
from heretic.scorers import Scorer

FEW = 0.03
"""Share of prompts up to which it does not matter what the replies that count are."""

WIDE = 0.1
"""Differences of a share that look like something, and should not if they are within chance."""


def front_warnings(
    front: Sequence[Trial], baseline: Sequence[Score], scorers: Sequence[Scorer]
) -> list[str]:
    """What a front's figures hide, one sentence each.

    Args:
        baseline: Scores of the unedited model.
        scorers: Those that scored the trials.
    """
    return [*_only_broken(front, scorers), *_overlapping(front, baseline)]


def _only_broken(front: Sequence[Trial], scorers: Sequence[Scorer]) -> list[str]:
    """Scores that count broken replies alone."""
    told = []
    for scorer in scorers:
        if scorer.optimization != "minimize":
            continue
        scores = {trial.number: trial.score(scorer.name) for trial in front}
        numbers = [
            number
            for number, score in scores.items()
            if score is not None
            and score.value * (score.total or 0) > max(1, FEW * (score.total or 0))
            and scorer.counts_only_broken(score)
        ]
        if numbers:
            trials = f"trial{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
            told.append(
                f"All that {scorer.name} counts in {trials} on the front are broken replies: the "
                "figure says nothing of declining. Look at the replies (chat) before you choose "
                "such a trial."
            )
    return told


def _overlapping(front: Sequence[Trial], baseline: Sequence[Score]) -> list[str]:
    """A first objective whose intervals do not tell the trials apart."""
    original = first_objective(baseline)
    if original is None or not front:
        return []
    scores = [score for trial in front if (score := trial.score(original.name)) is not None]
    ends = [score.interval for score in scores if score.interval is not None]
    if len(ends) < len(front) or not original.is_count:
        return []
    name, total = original.name, original.total
    remedy = "Give more evaluation prompts."
    if original.interval is not None and all(_overlap([one, original.interval]) for one in ends):
        told = f"interval of {name} of every trial on the front overlaps with the original's"
        return [f"On {total} prompts, the {told}: no trial is shown to change it. {remedy}"]
    values = [score.value for score in scores]
    if len(front) > 1 and _overlap(ends) and max(values) - min(values) >= WIDE:
        told = f"intervals of {name} of all trials on the front overlap"
        return [f"On {total} prompts, the {told}: they do not say which is the best. {remedy}"]
    return []


def _overlap(ends: Sequence[tuple[float, float]]) -> bool:
    """Whether intervals have a point in common."""
    return max(low for low, _ in ends) <= min(high for _, high in ends)
