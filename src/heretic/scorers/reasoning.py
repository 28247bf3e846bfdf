"""What becomes of the reasoning that a model writes before its answer.

No search uses these scorers: they are measured of chosen trials, of models that reason
(`heretic.pipeline.long_replies`).
"""

from __future__ import annotations

from collections.abc import Iterable

from heretic.refusals import VERSION, classify
from heretic.refusals.text import answer_start
from heretic.scorers.base import Needs, Outputs, PromptSet, Scorer, ScorerSettings


class _OfReasoning(Scorer):
    """Reads the replies to some prompt sets.

    Args:
        opened: Whether the prompt itself opens the block, so that replies hold only its end.
    """

    is_share = True
    title: str

    def __init__(
        self, settings: ScorerSettings, sets: Iterable[PromptSet], *, opened: bool = False
    ) -> None:
        super().__init__(settings, name=self.title, optimization="none")
        self.needs = Needs(responses=frozenset(sets))
        self._opened = opened

    def holds(self, reply: str) -> bool:
        """Whether a reply counts."""
        raise NotImplementedError

    def values(self, outputs: Outputs, baseline: Outputs) -> list[bool]:
        """Whether each reply counts; the sets in the order of their names."""
        names = sorted(self.needs.responses)
        return [self.holds(reply) for name in names for reply in outputs.responses[name]]

    def _start(self, reply: str) -> tuple[int, bool]:
        """Where the answer begins, and whether the reasoning before it has ended."""
        start, ended = answer_start(reply)
        return start, ended and (start > 0 or not self._opened)


class UnclosedReasoning(_OfReasoning):
    """Share of replies whose block of reasoning is not closed when the reply ends.

    Such a reply has no answer: it has used up its tokens, or stopped too early.
    """

    title = "unclosed_reasoning"

    def holds(self, reply: str) -> bool:
        """Whether the block is open at the end."""
        return not self._start(reply)[1]


class RefusalsInReasoning(_OfReasoning):
    """Share of replies that decline within the block of reasoning, whatever the answer says."""

    detector = VERSION
    title = "refusals_in_reasoning"

    def holds(self, reply: str) -> bool:
        """Whether the block declines."""
        start, ended = self._start(reply)
        block = reply[:start] if ended else reply
        return bool(block) and classify(_without_tags(block)).declines


def _without_tags(block: str) -> str:
    """The words of a block, without the tags around it, which hide it from the detector."""
    text = block.strip()
    if text.startswith("<"):
        text = text.partition(">")[2]
    return text.rpartition("</")[0] or text
