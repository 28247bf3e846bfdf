"""Broken replies: empty, looping, noise, or in a language that was not asked for."""

from __future__ import annotations

from collections.abc import Iterable

from heretic.refusals import VERSION, classify, settled
from heretic.scorers.base import Needs, NoOptions, Outputs, PromptSet, Scorer, ScorerSettings

ENDS = frozenset(".!?\u3002\uff01\uff1f")
"""Ends of sentences: only these can settle a reply, and it is asked at every token."""


class BrokenReplies(Scorer):
    """Share of broken replies among the replies to some prompt sets.

    No search uses it: it is measured of chosen trials (`heretic.pipeline.long_replies`). A reply
    that opens with a refusal is none, and need not be written to its end.
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
        return [
            not settled(reply) and classify(reply, prompt.user).label == "degenerate"
            for name in sorted(self.needs.responses)
            for reply, prompt in zip(outputs.responses[name], outputs.prompts[name], strict=True)
        ]
