"""A chat template as pieces of text around the messages, and as a template for Ollama.

Ollama's templates are written in Go's language and cannot be translated from Jinja in general. Most
chat templates only put text around messages, though. Which text is found by rendering chats, and
the result is believed only if it renders other chats like the template itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

Chat = Sequence[Mapping[str, str]]
"""Messages with `role` and `content`: perhaps a system message, then user and assistant in turn."""

Render = Callable[[Chat], str]
"""Renders a chat up to where the next reply begins."""

SYSTEM, ASKED, REPLIED, AGAIN = "Sys4y7w", "Ask8k2v", "Rep1x9q", "Aga5m3z"
"""Contents by which the pieces are found: words that no template has."""

TRIED = (
    ("You are a cat.", "What is 2 + 2?", "4", "Why?"),
    ("Answer in\ntwo lines.", "Hi\nthere", "A: b\n\nc", "{{ x }} \"y\" 'z' <b> ü"),
)
"""Contents of the chats on which what was found is tried."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The text that a template puts around messages.

    Attributes:
        opening: Before the first user message of a chat without a system prompt.
        system: Before and after a system prompt; None if the template takes none.
        asked: After a user message.
        reply: Before and after a reply, up to the next user message.
        generation: What a new reply begins after.
    """

    opening: str
    system: tuple[str, str] | None
    asked: str
    reply: tuple[str, str]
    generation: str

    def text(self, chat: Chat) -> str:
        """The text of a chat."""
        parts = [self.opening]
        for message in chat:
            content = message["content"]
            if message["role"] == "system" and self.system is not None:
                parts = [self.system[0], content, self.system[1]]
            elif message["role"] == "user":
                parts += [content, self.asked]
            elif message["role"] == "assistant":
                parts += [self.reply[0], content, self.reply[1]]
        return "".join([*parts, self.generation])

    def without_start(self, start: str) -> ChatFormat:
        """The same without a token's text at the beginning, which the program puts there itself."""
        system = self.system
        if system is not None:
            system = system[0].removeprefix(start), system[1]
        return replace(self, opening=self.opening.removeprefix(start), system=system)

    def go_template(self) -> str:
        """The template in Go's language, on the variables `.System` and `.Messages` of Ollama."""
        before = _quoted(self.opening)
        if self.system is not None:
            own = f"{_quoted(self.system[0])}{{{{ .System }}}}{_quoted(self.system[1])}"
            before = f"{{{{ if .System }}}}{own}{{{{ else }}}}{before}{{{{ end }}}}"
        return (
            f"{before}{{{{ range .Messages }}}}"
            f'{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{_quoted(self.asked)}'
            f'{{{{ else if eq .Role "assistant" }}}}{_quoted(self.reply[0])}'
            f"{{{{ .Content }}}}{_quoted(self.reply[1])}"
            f"{{{{ end }}}}{{{{ end }}}}{_quoted(self.generation)}"
        )


def chat_format(render: Render) -> ChatFormat | None:
    """The format of a template; None if it does more than put text around messages."""
    try:
        plain = _pieces(render(_chat(None, ASKED, REPLIED, AGAIN)), ASKED, REPLIED, AGAIN)
    except Exception:  # a template may refuse any chat, in its own words
        return None
    if plain is None:
        return None
    opening, before_reply, after_reply, end = plain
    pairs = zip(before_reply, end, strict=False)
    asked = "".join(one for one, other in takewhile(lambda pair: pair[0] == pair[1], pairs))
    reply = before_reply.removeprefix(asked), after_reply
    found = ChatFormat(opening, _system(render), asked, reply, end.removeprefix(asked))
    return found if all(_agrees(found, render, contents) for contents in TRIED) else None


def _system(render: Render) -> tuple[str, str] | None:
    try:
        pieces = _pieces(render(_chat(SYSTEM, ASKED)), SYSTEM, ASKED)
    except Exception:  # many templates refuse system prompts
        return None
    return None if pieces is None else (pieces[0], pieces[1])


def _agrees(found: ChatFormat, render: Render, contents: tuple[str, str, str, str]) -> bool:
    """Whether chats of one, two and three turns come out as the template renders them."""
    system, asked, replied, again = contents
    chats = [
        _chat(given, *turns)
        for given in ((None,) if found.system is None else (None, system))
        for turns in ((asked,), (asked, replied, again), (asked, replied, again, replied, asked))
    ]
    return all(found.text(chat) == render(chat) for chat in chats)


def _chat(system: str | None, *turns: str) -> Chat:
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return messages + [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


def _pieces(text: str, *contents: str) -> list[str] | None:
    """The text around contents that stand in it once each, in this order; None if they do not."""
    pieces = []
    for content in contents:
        before, found, text = text.partition(content)
        if not found or any(one in before for one in contents):
            return None
        pieces.append(before)
    return None if any(one in text for one in contents) else [*pieces, text]


def _quoted(text: str) -> str:
    """An action that writes the text; its form as a Go string is that of JSON."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
