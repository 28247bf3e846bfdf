"""Chat with a GGUF file, as llama.cpp runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from heretic.errors import ModelError
from heretic.gguf.llama import LlamaFile
from heretic.model.core import LONGEST_REPLY
from heretic.model.templates import untemplated

UNFINISHED = "\ufffd"
"""What stands for bytes that are no whole character yet."""


def rendered_chat(file: LlamaFile, messages: Sequence[Mapping[str, str]]) -> str:
    """The text of a chat by the file's own template, up to where the reply begins.

    Raises:
        ModelError: The template fails.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    if file.chat_template is None:
        return untemplated(messages)
    try:
        found: Any = render_jinja_template(
            [[dict(message) for message in messages]],
            chat_template=file.chat_template,
            add_generation_prompt=True,
            bos_token=file.special("bos"),
            eos_token=file.special("eos"),
        )
    except Exception as error:  # a template is a program, which may raise anything
        raise ModelError(
            f"The chat template in {file.path} fails: {error}.",
            remedy="/system off leaves out a system prompt, which many templates refuse.",
        ) from error
    ((text,), _) = found  # texts by chat, and places in them
    return str(text)


def reply_of(file: LlamaFile, messages: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """The likeliest reply, piece by piece.

    Raises:
        ModelError: The chat has no room for a reply, or see `rendered_chat`.
    """
    row = file.tokens(rendered_chat(file, messages))
    room = file.trained_context - len(row)
    if room <= 0:
        raise ModelError(
            f"The chat has {len(row)} tokens; {file.path} has {file.trained_context} positions.",
            remedy="/reset starts a new conversation.",
        )
    ids: list[int] = []
    shown = 0
    for token in file.stream(row, min(LONGEST_REPLY, room)):
        ids.append(token)
        text = file.text(ids)
        if not text.endswith(UNFINISHED):
            yield text[shown:]
            shown = len(text)
    yield file.text(ids)[shown:]
