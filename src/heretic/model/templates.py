"""Turns prompts into token ids: chat template, system role, exactly one BOS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from heretic.prompts import Prompt

Messages = list[dict[str, str]]


def messages_for(prompt: str | Prompt, default_system: str | None) -> Messages:
    """The conversation that a prompt stands for; a string gets the default system prompt."""
    user = prompt if isinstance(prompt, str) else prompt.user
    system = default_system if isinstance(prompt, str) else prompt.system
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": user}]


class ChatRenderer:
    """Renders conversations with a tokenizer's template.

    System messages are left out if the template refuses them. If a template has an
    `enable_thinking` switch, it is turned off, so evaluation reads the answer and not the
    reasoning.

    Args:
        variables: Template variables, as in the setting `chat_template_kwargs`. They override that
            switch.
    """

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        self.has_template = bool(template)
        switch = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
        self._switches = {**switch, **(variables or {})}
        # Checked once, not for every row of every batch.
        self._adds_bos = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.takes_system = self.has_template and self._accepts_system_role()

    def _accepts_system_role(self) -> bool:
        try:
            self._apply(messages_for("x", "y"))
        except TemplateError:
            return False
        return True

    def _apply(self, messages: Messages) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self._switches
        )
        return text

    def text(self, messages: Messages) -> str:
        """The prompt as text, up to where the reply begins."""
        if not self.has_template:
            return "\n\n".join(message["content"] for message in messages) + "\n"
        if not self.takes_system:
            messages = [message for message in messages if message["role"] != "system"]
        return self._apply(messages)

    def encode(self, texts: Sequence[str]) -> Any:
        """`token_ids`, padded on the left; see `padded`."""
        return self.padded(self.token_ids(texts))

    def padded(self, rows: Sequence[list[int]]) -> Any:
        """Rows padded on the left: a BatchEncoding of `input_ids` and `attention_mask`, int64."""
        return self._tokenizer.pad({"input_ids": rows}, padding=True, return_tensors="pt")

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text.

        Templates usually write the BOS themselves, and many tokenizers add one too. Each row gets
        exactly one if the tokenizer adds it, and never two.
        """
        rows = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [self._with_one_bos(row) for row in rows]

    def _with_one_bos(self, row: list[int]) -> list[int]:
        bos = self._tokenizer.bos_token_id
        if bos is None:
            return row
        start = 0
        while start + 1 < len(row) and row[start] == row[start + 1] == bos:
            start += 1
        row = row[start:]
        return [bos, *row] if self._adds_bos and row[:1] != [bos] else row
