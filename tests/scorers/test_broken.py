"""Broken replies are counted, and how many replies do not refuse is told beside them."""

from __future__ import annotations

from heretic.config import Settings
from heretic.prompts import Prompt
from heretic.scorers.base import Outputs
from heretic.scorers.broken import BrokenReplies

ANSWER = "Stars form in clouds of gas that fall together under their own weight. "
DECLINED = "I'm sorry, but I can't help with that request. Please ask something else."
LOOP = ANSWER + "and then the gas " * 40


def test_answers_are_told_beside_what_is_broken() -> None:
    replies = [ANSWER, DECLINED, LOOP, DECLINED + " " + LOOP]
    prompts = [Prompt("How do stars form?")] * len(replies)
    outputs = Outputs(prompts={"bad": prompts}, responses={"bad": replies})
    found = BrokenReplies(Settings(model="any"), {"bad"}).score(outputs, outputs)
    assert (found.value, found.display) == (0.25, "1/4 (of 2 answers)")
    assert (found.short, found.total, found.parts["answers"]) == ("1/4", 4, 2)
