"""What a search needs of those who score its plans elsewhere, several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from heretic.records.plan import Plan
from heretic.records.trial import Trial


class Pool(Protocol):
    """Takes plans, and gives back what became of them, in any order.

    Attributes:
        in_batches: Whether plans are proposed only when all that were handed in have come back. The
            proposals then depend on nothing but the seed and the scores.
        at_once: How many plans each of its workers evaluates together, at most.
    """

    in_batches: bool
    at_once: int

    @property
    def places(self) -> int:
        """How many plans it can work on at a time; in batches it stays the same."""

    def hand_in(self, batch: Sequence[tuple[int, Plan]]) -> None:
        """Take plans with the numbers of their trials."""

    def take(self) -> list[Trial]:
        """Wait until plans have ended; return their trials, complete or failed.

        Raises:
            StudyError: Nobody is left who could score plans.
        """
