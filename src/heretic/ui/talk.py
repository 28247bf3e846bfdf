"""Conversations with the original and a trial, side by side; they live on the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from heretic.worker.protocol import Message

MOST_CHARACTERS = 20_000
"""Of a message."""

MOST_TURNS = 40


@dataclass(slots=True)
class Turn:
    """A message of the user, and what both models reply.

    Attributes:
        strength: Of the edit.
        done: Whether both replies are complete.
        note: Why one is missing or cut.
    """

    prompt: str
    strength: float
    original: str = ""
    edited: str = ""
    done: bool = False
    note: str = ""


@dataclass(slots=True)
class Talk:
    """What was said with one trial of a run."""

    turns: list[Turn] = field(default_factory=list)

    def messages(self, *, edited: bool, system: str | None = None) -> list[Message]:
        """The conversation as one of the models knows it, its reply to the last turn missing.

        Args:
            system: What stands before it.
        """
        found: list[Message] = []
        for turn in self.turns[-MOST_TURNS:]:
            found.append(Message(role="user", content=turn.prompt))
            reply = turn.edited if edited else turn.original
            if turn.done and reply:
                found.append(Message(role="assistant", content=reply))
        head = [Message(role="system", content=system)] if system else []
        return head + _alternating(found)


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """Without messages of the user that were never answered: templates refuse two in a row."""
    return [
        message
        for place, message in enumerate(messages)
        if place + 1 == len(messages) or message.role != messages[place + 1].role
    ]
