"""Broken replies: empty, looping, noise, or in a language that was not asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from heretic.records.trial import Score
from heretic.refusals import VERSION, Label, settled
from heretic.scorers.base import Needs, NoOptions, Outputs, PromptSet, Scorer, ScorerSettings
from heretic.scorers.refusal import classified

ENDS = frozenset(".!?\u3002\uff01\uff1f")
"""Ends of sentences: only these can settle a reply, and it is asked at every token."""


class BrokenReplies(Scorer):
    """Share of broken replies among the replies to some prompt sets.

    No search uses it: it is measured of chosen trials (`heretic.pipeline.long_replies`). A reply
    that opens with a refusal is none, and need not be written to its end. Refusals hardly break, so
    a model that refuses less has more replies that can: the display tells the answers, which are
    the replies that do not refuse.
    """

    Options = NoOptions
    detector = VERSION

    def __init__(self, settings: ScorerSettings, sets: Iterable[PromptSet]) -> None:
        """Read the replies to these prompt sets."""
        super().__init__(settings, name="broken_replies", optimization="none")
        self.needs = Needs(responses=frozenset(sets))

    def decided(self, response: str) -> bool:
        """Whether the response opens with a refusal."""
        return response.rstrip()[-1:] in ENDS and settled(response)

    def values(self, outputs: Outputs, baseline: Outputs) -> list[bool]:
        """Whether each reply is broken; the sets in the order of their names."""
        return [label == "degenerate" for label in self._labels(outputs)]

    def score(self, outputs: Outputs, baseline: Outputs) -> Score:
        """The score; its display text tells how many replies are answers."""
        found = super().score(outputs, baseline)
        answers = sum(label != "refusal" for label in self._labels(outputs))
        return replace(found, display=f"{found.display} (of {answers} answers)")

    def _labels(self, outputs: Outputs) -> list[Label]:
        """The label of each reply; of one that opens with a refusal that, however it goes on."""
        return [
            "refusal" if settled(reply) else classified(reply, prompt.user).label
            for name in sorted(self.needs.responses)
            for reply, prompt in zip(outputs.responses[name], outputs.prompts[name], strict=True)
        ]
