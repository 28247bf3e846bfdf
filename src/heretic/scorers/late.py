"""Late refusals: replies that the search's length cut off before they declined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from heretic.refusals import VERSION, classify
from heretic.scorers.base import Outputs, Scorer
from heretic.scorers.replies import ReplyScorer


class LateRefusals(Scorer):
    """Share of replies that count as refused as a whole, but not when cut where the search cut.

    No search uses it: it is measured of chosen trials (`heretic.pipeline.long_replies`). Broken
    replies are left out, since they are shown by themselves.
    """

    is_share = True
    detector = VERSION

    def __init__(self, counted: ReplyScorer, cut: Callable[[str], str]) -> None:
        """Compare whole replies with cut ones.

        Args:
            counted: The scorer that says which replies count as refused.
            cut: Cuts a reply where the search would have ended it.
        """
        super().__init__(counted.settings, name=f"late_{counted.name}", optimization="none")
        self.needs = counted.needs
        self._counted, self._cut = counted, cut

    def decided(self, response: str) -> bool:
        """Whether the other scorer has decided."""
        return self._counted.decided(response)

    def values(self, outputs: Outputs, baseline: Outputs) -> list[bool]:
        """Whether each reply was counted only after the search's length."""
        name = self._counted.set
        replies, prompts = outputs.responses[name], outputs.prompts[name]
        short = [self._cut(reply) for reply in replies]
        cut = replace(outputs, responses={**outputs.responses, name: short})
        whole, part = (self._counted.values(found, baseline) for found in (outputs, cut))
        return [
            after > before and classify(reply, prompt.user).label != "degenerate"
            for after, before, reply, prompt in zip(whole, part, replies, prompts, strict=True)
        ]
