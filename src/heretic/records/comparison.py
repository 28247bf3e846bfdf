"""A share beside the original's, as people read it."""

from __future__ import annotations

from heretic.records.statistics import paired_shares
from heretic.records.trial import Score


def beside_original(score: Score, original: Score) -> str | None:
    """A share of right items with the original's, and the paired difference in points of 100.

    For example `61.2% (original 63.0%, difference -1.8 points [-4.6, +1.1])`; the brackets are the
    95% interval of `heretic.records.statistics.paired_shares`.

    Args:
        score, original: Scores of the same items with a 0 or 1 for each, such as `capability`.

    Returns:
        None if the two cannot be paired.
    """
    found = paired_shares(original.values, score.values)
    if found is None:
        return None
    low, high = (100 * end for end in found.interval)
    return (
        f"{score.value:.1%} (original {original.value:.1%}, difference "
        f"{100 * found.difference:+.1f} points [{low:+.1f}, {high:+.1f}])"
    )
