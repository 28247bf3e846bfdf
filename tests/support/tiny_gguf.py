"""A tiny Llama as a GGUF file, as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.support import tiny

SIZES: dict[str, Any] = {"vocab_size": 260, "intermediate_size": 64}
"""One token more than the byte-level tokenizer, as a file needs a merge; rows of whole blocks."""

ATTENTION = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
MLP = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def model() -> Any:
    """The model that files are made from."""
    return tiny.model("llama", **SIZES)


def write(path: Path, of: Any, *, quantised: bool = False, architecture: str = "llama") -> Path:
    """Write a model as a GGUF file.

    Args:
        quantised: Whether matrices are stored as Q8_0 (8 bits), else as float32.
    """
    writer = gguf.GGUFWriter(path, architecture)
    config = of.config
    writer.add_name("Tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer)
    state = {name: tensor.numpy() for name, tensor in of.state_dict().items()}
    for name, matrix in _named(state, config).items():
        if quantised and matrix.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(matrix, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any) -> None:
    tokenizer = tiny.tokenizer()
    vocabulary = tokenizer.get_vocab()
    tokens = [*sorted(vocabulary, key=vocabulary.__getitem__), "ab"]
    special = len(tiny.SPECIAL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * special + [1] * (len(tokens) - special))  # control, normal
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tiny.CHAT_TEMPLATE)


def _named(state: dict[str, Any], config: Any) -> dict[str, Any]:
    """The tensors under the format's names; queries and keys in its order of rotations."""
    named = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        own = {ours: f"{layer}.self_attn.{theirs}" for ours, theirs in ATTENTION.items()}
        own |= {ours: f"{layer}.mlp.{theirs}" for ours, theirs in MLP.items()}
        own |= {ours: f"{layer}.{theirs}" for ours, theirs in NORMS.items()}
        for ours, theirs in own.items():
            matrix = state[f"{theirs}.weight"]
            if ours in heads:
                matrix = _rotations(matrix, heads[ours])
            named[f"blk.{index}.{ours}.weight"] = np.ascontiguousarray(matrix)
    return named


def _rotations(matrix: Any, heads: int) -> Any:
    halves = matrix.reshape(heads, 2, len(matrix) // heads // 2, matrix.shape[1])
    return halves.swapaxes(1, 2).reshape(matrix.shape)
