"""Late refusals are counted apart from early ones and from broken replies."""

from __future__ import annotations

import pytest

from heretic.config import Settings
from heretic.prompts import Prompt
from heretic.scorers.base import Outputs
from heretic.scorers.keyword import KeywordRefusals
from heretic.scorers.late import LateRefusals
from heretic.scorers.refusal import RefusalDetector
from heretic.scorers.replies import ReplyScorer

ANSWER = "Stars form in clouds of gas that fall together under their own weight. "
DECLINED = "I'm sorry, but I can't help with that request. Please ask something else."
CUT = len(ANSWER)


def late_of(counted: ReplyScorer, replies: list[str]) -> list[bool]:
    prompts = [Prompt("How do stars form?", None)] * len(replies)
    outputs = Outputs(prompts={"bad": prompts}, responses={"bad": replies})
    return LateRefusals(counted, lambda reply: reply[:CUT]).values(outputs, outputs)


@pytest.mark.parametrize("kind", [KeywordRefusals, RefusalDetector])
def test_only_what_the_cut_reply_hid_is_late(kind: type[ReplyScorer]) -> None:
    counted = kind(Settings(model="any"), name="refusals")
    replies = [ANSWER + DECLINED, DECLINED + " " + ANSWER, ANSWER * 3, DECLINED]
    assert late_of(counted, replies) == [True, False, False, False]


def test_what_breaks_late_is_not_declined_late() -> None:
    counted = RefusalDetector(Settings(model="any"), name="refusals")
    looping = ANSWER + "and then the gas " * 40
    prompts = [Prompt("How do stars form?", None)]
    outputs = Outputs(prompts={"bad": prompts}, responses={"bad": [looping]})
    assert counted.values(outputs, outputs) == [True]  # it counts as refused
    assert late_of(counted, [looping]) == [False]


def test_it_is_named_after_the_scorer_and_no_search_uses_it() -> None:
    late = LateRefusals(KeywordRefusals(Settings(model="any"), name="words"), str)
    assert (late.name, late.optimization) == ("late_words", "none")
    assert late.needs.responses == {"bad"}
