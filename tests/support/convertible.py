"""Tiny models with a tokenizer that llama.cpp's converter knows: that of the demo's base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from heretic.demo.base import base_model
from tests.support import tiny

SIZES: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "initializer_range": 0.1,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}
"""Rows of the down projections are whole blocks of K types; all others are not."""


def tokenizer() -> Any:
    """The tokenizer of the demo's base model, which must be in the cache."""
    return AutoTokenizer.from_pretrained(base_model())


def folder(path: Path, model_type: str = "llama", *, seed: int = 0, **overrides: Any) -> Path:
    """Save a tiny model with that tokenizer under `path` and return `path`."""
    tiny.model(model_type, seed=seed, **{**SIZES, **overrides}).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path
