"""The one rule set that makes any transformers config tiny.

A config is read as nested keyword arguments, every number is looked up by its attribute's name in
`RULES`, lists with one entry per layer are cut down to a few layers that show every kind, and the
config class is called again with the result.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import PretrainedConfig

VOCABULARY = 259
HIDDEN = 32
MIN_LAYERS, MAX_LAYERS = 3, 6
# Ids that the byte tokenizer of the tests gives to bytes which no ASCII text has.
MODALITY_IDS = range(258, 223, -1)

# (pattern of the whole attribute name, value for an integer there); the first match counts.
_TABLE: tuple[tuple[str, int | None], ...] = (
    # None: leave alone, whatever a later pattern says.
    (r"type_vocab_size|task_type_vocab_size|patch_embed_hidden_size", None),
    (r"pad_token_id", 0),
    (r"bos_token_id|decoder_start_token_id", 1),
    (r"eos_token_id|forced_eos_token_id", 2),
    (r"encoder_hash_byte_group_vocab", 64),
    (r"(\w+_)?vocab_size(_\w+)?|codebook_size|num_embeddings", VOCABULARY),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length", 512),
    (r"context_length|model_max_length|max_target_positions|max_source_positions", 512),
    (r"position_embedding_size|original_max_position_embeddings", 512),
    # Layers; the list rule below decides where a config lists its layers one by one.
    (r"(num_|n_)?(hidden_|decoder_|encoder_)?layers?", MIN_LAYERS),
    (r"(conf_)?num_hidden_layers|num_blocks", MIN_LAYERS),
    (r"depth|resampler_depth|num_global_layers|num_lstm_layers|aligner_num_add_layers", 2),
    (r"num_kv_shared_layers", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"max_window_layers", 1),
    # State spaces and linear attention.
    (r"(ssm_)?state_size|mamba_d_state", 8),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"n_groups|mamba_n_?groups", 2),
    (r"mamba_n_heads|n_mamba_heads|mamba_num_heads", 4),
    (r"mamba_d_head|mamba_head_?dim", 16),
    (r"mamba_d_ssm", 64),
    # Heads.
    (r"(\w+_)?(num_key_value_heads|num_kv_heads|kv_n_heads|multi_query_groups)", 2),
    (r"num_query_groups|indexer_kv_heads", 2),
    (r"(\w+_)?(num_attention_heads|attention_heads)", 4),
    (r"(n_|num_|resampler_|resampler_n_)?heads?", 4),
    (r"index_n_heads|indexer_n_heads|linear_num_key_heads", 2),
    (r"linear_num_(value_)?heads", 4),
    (r"index_head_dim|indexer_head_dim", 16),
    (r"(\w+_)?(head_dim|dim_head|d_head|head_size|d_kv|kv_channels|headdim)", 8),
    (r"d_rel|attention_head_dim|qk_nope_head_dim|qk_rope_head_dim|v_head_dim", 8),
    (r"rotary_dim", 4),
    (r"(q|kv|o)_lora_rank|adapter_rank|laurel_rank|gated_norm_rank|hc_lowrank", 8),
    (r"query_pre_attn_scalar", 8),
    # Windows and chunks shorter than the texts of the tests, so that they matter.
    (r"sliding_window(_size)?|attention_window_size|attention_chunk_size|local_attention", 16),
    (r"chunk_size|mamba_chunk_size|local_attention_window_len", 16),
    # Experts.
    (r"(\w+_)?(num_experts|n_routed_experts|num_local_experts)", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_top_?k|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts|zero_expert_num", 1),
    # Indexed attention and the like.
    (r"index_topk|index_block_size|index_kpool", 8),
    (r"index_topk_blocks", 2),
    (r"router_hidden_size", 16),
    # Widths of feed-forward blocks.
    (r"(\w+_)?(intermediate_size|intermediate_dim|ffn_dim|ffn_hidden_size)(_mlp)?", 48),
    (r"d_ff|dff|d_inner|dim_ff|mlp_dim|feed_forward_size|share(d)?_expert_dim", 48),
    (r"moe_shared_expert_intermediate_size|moe_hidden_size|shared_experts_intermediate_size", 48),
    (r"moe_latent_size", 16),
    (r"hidden_size_per_layer_input|ple_embed_dim", 16),
    # Everything as wide as the residual stream; towers are as wide as the text.
    (r"(\w+_)?(hidden_size|hidden_dim|d_model|n_embd|embed_dim|emb_dim|embedding_dim)", HIDDEN),
    (r"(\w+_)?(embedding_size|projection_dim|proj_dim|output_dim|out_dim|input_dim)", HIDDEN),
    (r"hidden_sizes|downsample_channels|post_conv_\w+_channels", HIDDEN),
    (r"hidden_size_global|attention_hidden_size|lru_width|out_hidden_size|dim_model_base", HIDDEN),
    (r"(conv_)?output_size|pooler_output_size|output_channels|projector_hidden_size", HIDDEN),
    (r"projection_hidden_size|adapter_in_dim|adapter_input_size|encoder_cross_output_size", HIDDEN),
    # Towers: never run here, only built.
    (r"image_size|img_size|crop_size|scale|resolution", 32),
    (r"num_position_embeddings|num_patches|max_num_patches|img_max_token_num", 16),
    (r"pos_emb_height|pos_emb_width|posemb_grid_size|max_num_tiles", 4),
    (r"num_image_tokens|num_query_tokens|resampler_n_latents|latent_query_num", 4),
    (r"resampler_num_latents|image_seq_length|mm_tokens_per_image|seq_len", 4),
    (r"num_mel_bins|n_mel_bins|feature_size", 16),
    (r"base_channels", 32),
)
RULES = tuple((re.compile(pattern), value) for pattern, value in _TABLE)

# Factors whose default of 1 would hide them.
MULTIPLIERS = (
    "residual_multiplier", "attention_out_multiplier", "ssm_out_multiplier",
    "routed_scaling_factor",
)  # fmt: skip
_DROPPED = {
    "transformers_version", "model_type", "architectures", "dtype", "torch_dtype", "id2label",
    "label2id", "name_or_path", "attn_implementation", "experts_implementation", "qk_head_dim",
    "base_model_tp_plan", "per_layer_config", "base_model_pp_plan",
    "ignore_keys_at_rope_validation",
}  # fmt: skip
_LAYER_COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks",
    "num_decoder_layers", "encoder_layers", "layers", "depth",
)  # fmt: skip
_TOKEN = re.compile(r"\w*(token_id|token_index|_id|_start|_end)")


def scalar(name: str, value: Any, tokens: dict[str, int]) -> Any:
    """The tiny value of an attribute; values that no rule names stay as they are."""
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        if name.endswith("token_id"):
            return scalar(name, value[0], tokens)
        return [scalar(name, item, tokens) for item in value]
    if isinstance(value, float) and value == 1.0 and name in MULTIPLIERS:
        return 0.5
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    for pattern, tiny in RULES:
        if pattern.fullmatch(name):
            return value if tiny is None else tiny
    if _TOKEN.fullmatch(name) and value >= VOCABULARY:
        return tokens.setdefault(name, MODALITY_IDS[len(tokens)])
    return value


def shown_layers(lists: dict[str, list[Any]], count: int) -> list[int]:
    """Indices of a few layers, in order, such that every value of every list occurs."""
    if not lists:
        return list(range(min(count, MIN_LAYERS)))
    chosen: list[int] = []
    seen: set[str] = set()
    for index in range(count):
        values = {f"{name} {items[index]}" for name, items in lists.items()}
        if values - seen and len(chosen) < MAX_LAYERS:
            chosen.append(index)
            seen |= values
    for index in range(count):
        if len(chosen) < min(count, MIN_LAYERS) and index not in chosen:
            chosen.append(index)
    return sorted(chosen)


def _short_lists(values: dict[str, Any]) -> dict[str, Any]:
    """Replace lists of one entry per layer by those of the layers to keep, and count these."""
    name = next((key for key in _LAYER_COUNTS if isinstance(values.get(key), int)), None)
    if name is None:
        return {}
    count = values[name]
    lists = {
        key: list(items)
        for key, items in values.items()
        if isinstance(items, list | tuple) and len(items) == count and count > 2
    }
    numbered = {key for key, items in lists.items() if items == list(range(count))}
    kinds = {key: items for key, items in lists.items() if key not in numbered}
    kept = shown_layers(kinds, count)
    short: dict[str, Any] = {key: [items[index] for index in kept] for key, items in kinds.items()}
    short |= {key: list(range(len(kept))) for key in numbered}
    short[name] = len(kept)
    return short


def _rope(parameters: Any, head_dim: int) -> Any:
    """Rope parameters whose sections and factors fit the smaller head."""
    if not isinstance(parameters, dict):
        return parameters
    result = {
        key: _rope(value, head_dim) if isinstance(value, dict) else value
        for key, value in parameters.items()
    }
    half = int(head_dim * result.get("partial_rotary_factor", 1.0)) // 2
    if "mrope_section" in result:
        parts = len(result["mrope_section"])
        rest = [max(half // parts, 1)] * (parts - 1)
        result["mrope_section"] = [half - sum(rest), *rest]
    return result


def tiny_arguments(
    config: PretrainedConfig, overrides: dict[str, Any], tokens: dict[str, int] | None = None
) -> dict[str, Any]:
    """Keyword arguments for a tiny config of the same class; `overrides` nest like sub-configs."""
    tokens = {} if tokens is None else tokens
    values = {
        key: value
        for key, value in vars(config).items()
        if not key.startswith("_") and key not in _DROPPED and value is not None
    }
    short = _short_lists(values)
    counted = set(_LAYER_COUNTS)
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, PretrainedConfig):
            inner = overrides.get(key)
            nested = tiny_arguments(value, inner if isinstance(inner, dict) else {}, tokens)
            result[key] = {"model_type": value.model_type, **nested} if value.model_type else nested
        elif key in short:
            result[key] = scalar(key, short[key], tokens) if key not in counted else short[key]
        else:
            result[key] = scalar(key, value, tokens)
    if values.get("mlp_only_layers") == []:
        result["mlp_only_layers"] = [0]
    if hasattr(config, "vocab_size"):
        result |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    heads = result.get("num_attention_heads", 4)
    if "kv_lora_rank" in values and values.get("num_key_value_heads") == values.get(
        "num_attention_heads"
    ):
        result["num_key_value_heads"] = heads
    if getattr(config, "is_decoder", None) is False and "is_decoder" in values:
        result["is_decoder"] = True
    for key, value in overrides.items():
        nested_config = isinstance(values.get(key), PretrainedConfig)
        if not (nested_config and isinstance(value, dict) and "model_type" not in value):
            result[key] = value
    if "rope_parameters" not in overrides and "rope_parameters" in result:
        heads = result.get("num_attention_heads", heads)
        width = result.get("head_dim") or result.get("hidden_size", HIDDEN) // heads
        result["rope_parameters"] = _rope(result["rope_parameters"], width)
    # `...`: the class works the value out by itself.
    return {key: value for key, value in result.items() if value is not ...}
