"""Blocks of reasoning that are not closed, or that decline, are counted."""

from __future__ import annotations

import pytest

from heretic.config import Settings
from heretic.refusals.text import opens_reasoning
from heretic.scorers.base import Outputs
from heretic.scorers.reasoning import RefusalsInReasoning, UnclosedReasoning

DECLINES = "I'm sorry, but I can't help with that request. I will say so."
WEIGHS = "The user asks about stars. I should explain how they form."
ANSWER = "Stars form in clouds of gas."


@pytest.mark.parametrize(
    ("reply", "unclosed", "declines"),
    [
        (f"<think>{WEIGHS}</think>{ANSWER}", False, False),
        (f"<think>\n{DECLINES}\n</think>\n{ANSWER}", False, True),
        (f"<think>{WEIGHS}", True, False),
        (f"<think>{DECLINES}", True, True),
        (ANSWER, False, False),
        (DECLINES, False, False),  # an answer that declines is another score's business
    ],
)
def test_what_counts(reply: str, unclosed: bool, declines: bool) -> None:
    """Where the prompt opens the block, the reply holds only its end."""
    forms = [(reply, False)]
    if reply.startswith("<think>"):
        forms.append((reply.removeprefix("<think>"), True))
    settings = Settings(model="any")
    for text, opened in forms:
        outputs = Outputs(responses={"bad": [text]})
        for kind, wanted in ((UnclosedReasoning, unclosed), (RefusalsInReasoning, declines)):
            scorer = kind(settings, {"bad"}, opened=opened)
            assert scorer.values(outputs, outputs) == [wanted], (kind, opened)


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|user|>Hi<|assistant|><think>\n", True),
        ("<|user|>Hi<|assistant|><think>\n\n</think>\n\n", False),
        ("<|user|>What does <think>x</think> mean?<|assistant|>", False),
        ("<|user|>Hi<|assistant|>", False),
    ],
)
def test_prompts_that_open_a_block(prompt: str, opens: bool) -> None:
    assert opens_reasoning(prompt) == opens
