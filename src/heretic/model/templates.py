"""Turns prompts into token ids: chat template, system role, exactly one BOS."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any

from transformers.utils import chat_template_utils

from heretic.errors import ModelError
from heretic.prompts import Prompt

Messages = list[dict[str, str]]

USER_PROBE, SYSTEM_PROBE = "Wombatiger", "Axolotlion"
"""Words that no template holds: they show which messages a template writes into the prompt."""

_REASONING = re.compile(
    r"enable_thinking|reasoning_content|<th(?:ink|ought)|\[THINK\]|<\|channel\|>"
)
"""What templates hold that write, take out or switch off a block of reasoning."""


def messages_for(prompt: str | Prompt, default_system: str | None) -> Messages:
    """The conversation that a prompt stands for; a string gets the default system prompt."""
    user = prompt if isinstance(prompt, str) else prompt.user
    system = default_system if isinstance(prompt, str) else prompt.system
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": user}]


def untemplated(messages: Sequence[Mapping[str, str]]) -> str:
    """The text of a conversation for a model without a chat template."""
    return "\n\n".join(message["content"] for message in messages) + "\n"


@dataclass(frozen=True, slots=True)
class _Form:
    """How messages are handed to a template.

    Attributes:
        parts: Whether content is a list of parts, `[{"type": "text", "text": ...}]`.
        system_parts: The same, for the system prompt.
        system: Whether the template takes a message of the system role.
        shows_system: Whether the system prompt's words are in the text that it makes.
    """

    parts: bool = False
    system_parts: bool = False
    system: bool = True
    shows_system: bool = True

    def shaped(self, messages: Messages) -> list[dict[str, Any]]:
        return [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if (self.system_parts if message["role"] == "system" else self.parts)
            else dict(message)
            for message in messages
        ]


_FORMS = (_Form(), _Form(True, True), _Form(parts=True), _Form(system_parts=True))


class ChatRenderer:
    """Renders conversations with a chat template.

    Content is handed over as text or as a list of parts, whichever the template writes into the
    prompt. System messages are left out if the template refuses them. If a template has an
    `enable_thinking` switch, it is turned off, so evaluation reads the answer and not the
    reasoning.

    Attributes:
        date: The moment that templates are told when they ask for the time. It stays the same, so
            that equal prompts give equal texts tomorrow.
        template: The template's text; None without one.
    """

    def __init__(
        self,
        tokenizer: Any,
        variables: Mapping[str, Any] | None = None,
        *,
        template: str | None = None,
        name: str = "the model",
    ) -> None:
        """Find out how the template takes messages.

        Args:
            variables: Template variables, as in the setting `chat_template_kwargs`. They override
                that switch.
            template: The template's text, from `find_template`; None means plain text.
            name: The model's name in errors.

        Raises:
            ModelError: The template fails, or does not write the user's message into the prompt.
        """
        self._tokenizer = tokenizer
        self.template = template
        self.has_template = template is not None
        self.date = datetime.now().replace(microsecond=0)
        switch = {"enable_thinking": False} if "enable_thinking" in (template or "") else {}
        self._switches = {**switch, **(variables or {})}
        if template is not None and template != tokenizer.chat_template:
            self._switches["chat_template"] = template
        # Checked once, not for every row of every batch.
        self._adds_bos = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        self._form = _Form() if template is None else self._find_form(name)

    def with_variables(self, **variables: Any) -> ChatRenderer:
        """One that gives the template other variables; the date stays."""
        known = {name: value for name, value in self._switches.items() if name != "chat_template"}
        other = ChatRenderer(self._tokenizer, {**known, **variables}, template=self.template)
        other.date = self.date
        return other

    @property
    def shows_system(self) -> bool:
        """Whether a system prompt's words are in the text of a prompt."""
        return self._form.shows_system

    @property
    def reasons(self) -> bool:
        """Whether the template has a place for reasoning, so that the model may reason."""
        return _REASONING.search(self.template or "") is not None

    @property
    def uses_clock(self) -> bool:
        """Whether the template can ask for the time."""
        return "strftime_now" in (self.template or "")

    def _find_form(self, name: str) -> _Form:
        """The first form in which the template shows the user's message, and the system prompt.

        Plain text comes first, as most templates want it. A template that ignores the system role
        is given it nevertheless: some write a system prompt of their own where there is none.
        """
        problem: Exception | None = None
        both = messages_for(Prompt(USER_PROBE, SYSTEM_PROBE), None)
        partly: list[_Form] = []
        for messages in (both, both[1:]):
            for form in _FORMS:
                try:
                    text = self._apply(form.shaped(messages))
                except Exception as error:  # a template is a program, which may raise anything
                    problem = problem or error
                    continue
                if not shows(text, USER_PROBE):
                    continue
                if messages is both and shows(text, SYSTEM_PROBE):
                    return form
                taken = messages is both
                partly.append(
                    _Form(form.parts, form.system_parts, system=taken, shows_system=False)
                )
        if partly:
            return partly[0]
        raise self._unusable(name, problem)

    def _unusable(self, name: str, problem: Exception | None) -> ModelError:
        remedy = "Mend the template, or choose another by chat_template if the model has several."
        try:
            text = self._apply(messages_for(USER_PROBE, None))
        except Exception as error:
            return ModelError(
                f"The chat template of {name} fails: {_first_line(problem or error)}",
                remedy=remedy,
            )
        return ModelError(
            f"The chat template of {name} leaves out the prompt: it makes {text[:200]!r} of the "
            f"message {USER_PROBE!r}.",
            remedy=remedy,
        )

    def _apply(self, messages: Sequence[Mapping[str, Any]]) -> str:
        with clock_at(self.date):
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self._switches
            )
        return text

    def text(self, messages: Messages) -> str:
        """The prompt as text, up to where the reply begins.

        Raises:
            ModelError: The template fails on these messages.
        """
        if not self.has_template:
            return untemplated(messages)
        if not self._form.system:
            messages = [message for message in messages if message["role"] != "system"]
        try:
            return self._apply(self._form.shaped(messages))
        except Exception as error:
            last = messages[-1]["content"] if messages else ""
            raise ModelError(
                f"The chat template fails on {last[:60]!r}: {_first_line(error)}",
                remedy="Mend the template, or leave this message out.",
            ) from error

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


def shows(text: str, word: str) -> bool:
    """Whether a template has written a word into a text, and not the list that it was part of."""
    plain = text.casefold().replace('"', "'")
    found = word.casefold()
    return found in plain and f"'type': 'text', 'text': '{found}" not in plain


@contextmanager
def clock_at(moment: datetime) -> Iterator[None]:
    """Let the clock of chat templates, transformers' `strftime_now`, stand still.

    transformers gives templates no other clock, and lets no function be handed to them.
    """

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return moment if tz is None else moment.astimezone(tz)

    module: Any = chat_template_utils
    running = module.datetime
    module.datetime = Stopped
    try:
        yield
    finally:
        module.datetime = running


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
