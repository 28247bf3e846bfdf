"""Tiny models made from configs, with a byte-level tokenizer: no downloads, real code paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """A tokenizer of bytes and three special tokens; every text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS + alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    result = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    result.chat_template = chat_template
    return result


def model(model_type: str = "llama", *, seed: int = 0, **overrides: Any) -> Any:
    """A causal language model of that type with random float32 weights large enough to matter."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**SIZES, "initializer_range": 0.3, **overrides})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def folder(
    path: Path,
    model_type: str = "llama",
    *,
    seed: int = 0,
    chat_template: str | None = CHAT_TEMPLATE,
    max_shard_size: str = "1GB",
    **overrides: Any,
) -> Path:
    """Save a tiny model with its tokenizer under `path` and return `path`."""
    model(model_type, seed=seed, **overrides).save_pretrained(path, max_shard_size=max_shard_size)
    tokenizer(chat_template).save_pretrained(path)
    return path


GOOD_PROMPTS = [
    f"Name {count} things in a {place}."
    for count in (2, 3, 5)
    for place in ("kitchen", "park", "school", "barn")
]
BAD_PROMPTS = [
    f"Why is the {body} so {word}?"
    for body in ("moon", "sun", "comet")
    for word in ("bright", "far", "old", "round")
]


def prompt_files(folder: Path) -> None:
    """Write `good.txt` and `bad.txt`, which `PROMPT_TABLES` names."""
    for kind, rows in (("good", GOOD_PROMPTS), ("bad", BAD_PROMPTS)):
        (folder / f"{kind}.txt").write_text("\n".join(rows), encoding="utf-8")


PROMPT_TABLES = """
[good_prompts]
dataset = "good.txt"
split = "train[:8]"
[bad_prompts]
dataset = "bad.txt"
split = "train[:8]"
[good_evaluation_prompts]
dataset = "good.txt"
split = "train[8:]"
[bad_evaluation_prompts]
dataset = "bad.txt"
split = "train[8:]"
"""
"""The sets of prompts as TOML, for a program that runs where the files are."""
