"""The group Generation of the settings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, field_validator

from heretic.config.declaration import FieldGroup, Optionally, as_list, as_table, setting

DEFAULT_CHAIN_OF_THOUGHT_SKIPS = (
    ("<think>", "<think></think>"),
    (
        "<|channel|>analysis<|message|>",
        "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    ("<thought>", "<thought></thought>"),
    ("[THINK]", "[THINK][/THINK]"),
)

NOT_FOR_TEMPLATES = frozenset(
    {
        "conversation",
        "messages",
        "chat_template",
        "tokenize",
        "add_generation_prompt",
        "return_dict",
    }
    | {"continue_final_message", "return_tensors", "tokenizer_kwargs"}
)
"""Arguments of `apply_chat_template` that Heretic fixes; they are not variables of a template."""


class GenerationFields(FieldGroup):
    """Prompts as the model sees them, and its replies."""

    batch_size: int = setting(
        0,
        "Generation",
        "Prompts processed at once; 0 finds a size. On an accelerator with 0, each of the plans "
        "that are evaluated together brings that many prompts, as far as memory allows.",
        ge=0,
        scores=False,
    )
    max_batch_size: int = setting(
        128, "Generation", "Largest batch size to try when finding one.", ge=1, scores=False
    )
    max_response_length: int = setting(
        100, "Generation", "New tokens generated for each reply that is scored.", ge=1
    )
    report_length: Annotated[int | None, Optionally] = setting(
        None,
        "Generation",
        "New tokens of each reply when a chosen trial is scored again, at least as many as in the "
        "search. Unset: 256, or 512 if the chat template knows of reasoning.",
        ge=1,
        example=256,
        scores=False,
    )
    response_prefix: str = setting(
        "auto",
        "Generation",
        "Text that every reply is made to start with; auto finds the beginning that replies have "
        "in common, empty text means none.",
    )
    chain_of_thought_skips: Annotated[tuple[tuple[str, str], ...], BeforeValidator(as_list)] = (
        setting(
            DEFAULT_CHAIN_OF_THOUGHT_SKIPS,
            "Generation",
            "Pairs of texts: the beginning of a reasoning block, and the closed block that "
            "replaces it in the response prefix.",
        )
    )
    system_prompt: Annotated[str | None, Optionally] = setting(
        "You are a helpful assistant.",
        "Generation",
        "System prompt before every prompt; empty text means none. It is left out where the chat "
        "template refuses a system role.",
    )
    chat_template: Annotated[str | None, Optionally] = setting(
        None,
        "Generation",
        "Name of the chat template to use, for models that have several. Unset: the one called "
        "default, or the only one.",
        example="rag",
        as_before=None,
    )
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(as_table)] = setting(
        {},
        "Generation",
        "Variables for the chat template, such as its switches. Where a template has the switch "
        "enable_thinking, it is off unless you set it here.",
        example={"reasoning_effort": "low"},
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_variables(cls, table: dict[str, Any]) -> dict[str, Any]:
        wrong = sorted(NOT_FOR_TEMPLATES & set(table))
        if wrong:
            raise ValueError(f"{wrong[0]} is not a variable of a chat template")
        return table
