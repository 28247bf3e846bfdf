"""What the generic rules do not know: per-type values, calls and types that cannot be built."""

from __future__ import annotations

from typing import Any

# Arguments without which the config class itself does not start.
BASE: dict[str, dict[str, Any]] = {}

SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 16,
}


def _text(**values: Any) -> dict[str, Any]:
    return {"text_config": values}


def _mrope(*section: int, **values: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)}
    return {"rope_parameters": rope | values}


_GEMMA4: dict[str, Any] = {
    # Two layers that keep keys and values of their own, two that share them.
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "global_head_dim": 16,
}
_GEMMA4_MOE: dict[str, Any] = {
    "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48,
}  # fmt: skip
_QWEN4: dict[str, Any] = {
    "layer_types": ["linear_attention", "linear_attention", "indexed_attention"],
    "num_hidden_layers": 3,
    "eos_token_id": 2,
    "number_of_conv_states": ...,
    "ple_layer_ids": [2],
    "ple_embed_dim": 16,
    "ngram_size": 3,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 4,
    "split_ngram_parts": 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
_DOTS3: dict[str, Any] = {
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8, "swa_kv_lora_rank": 8, "swa_q_lora_rank": 8,
    "head_dim": 16,
}  # fmt: skip
_COMPASS: dict[str, Any] = {
    "full_attention": None,
    "sliding_attention": _mrope(2, 1, 1)["rope_parameters"],
}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_SLIDING: dict[str, Any] = {"layer_types": _MIXED, "sliding_window": 16}
_LFM2: dict[str, Any] = {"layer_types": ["conv", "full_attention", "conv"], "full_attn_idxs": [1]}
_VQ: dict[str, Any] = {
    "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 32,
    "latent_channels": 32, "z_channels": 32, "num_embeddings": 16, "attn_resolutions": ...,
    "codebook_size": 16,
}  # fmt: skip

# Values that replace those of the rules; nested like the config; `...` drops an attribute.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    # transformers 5.23 reads other weights than it wrote where they are tied.
    "youtu": {"tie_word_embeddings": False},
    "blip-2": {"image_token_index": 258},
    "instructblip": {"image_token_index": 258},
    "instructblipvideo": {"video_token_index": 258, "image_token_index": ...},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "florence2": {"vision_config": {"num_groups": [4] * 4}},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "dots3_note": {"text_config": _DOTS3},
    "dots3_note_text": _DOTS3,
    "chameleon": {
        "vocabulary_map": {"<image>": 258, "<racm3:break>": 257, "<eoss>": 256, "IMGIMGA": 255},
        "vq_config": _VQ,
    },
    "cohere_compass": _text(rope_parameters=_COMPASS, layer_types=_MIXED, sliding_window=16),
    "cohere_compass_text": {"rope_parameters": _COMPASS} | _SLIDING,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8}},
    "deepseek_ocr2": _text(
        mlp_layer_types=["dense", "sparse", "sparse"], num_experts_per_tok=2
    ),
    "deepseek_v4": {
        "compress_rates": {
            "compressed_sparse_attention": 4,
            "heavily_compressed_attention": 8,
        }
    },
    "diffusion_gemma": _text(num_experts=4, top_k_experts=2, moe_intermediate_size=48),
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "emu3": {
        "vocabulary_map": {"<image>": 258, "<|extra_200|>": 257, "<|visual token 000000|>": 256},
        "vq_config": _VQ,
    },
    "ernie4_5_vl_moe": _text(**_mrope(1, 1, 2)),
    "fast_vlm": {"vision_config": SIGLIP},
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4 | _GEMMA4_MOE,
    "gemma4_unified": {"text_config": _GEMMA4},
    "gemma4_unified_text": _GEMMA4,
    "glm46v": _text(**_mrope(2, 1, 1)),
    "glm4v": _text(**_mrope(2, 1, 1)),
    "glmga": _text(**_mrope(2, 1, 1)),
    "glm4v_moe": _text(**_mrope(1, 1, 0, partial_rotary_factor=0.5)),
    "glm_ocr": _text(**_mrope(2, 1, 1)),
    "glm5_next": _text(num_key_value_heads=4, qk_rope_head_dim=0),
    "granite4_vision": {
        "downsample_rate": "1/2", "deepstack_layer_map": [[-1, 0], [-2, 1]],
        "spatial_target_layers": [1], "vision_config": {"hidden_size": 64},
    },
    "laguna": _SLIDING,
    "mellum": _SLIDING,
    "lfm2": _LFM2,
    "lfm2_vl": {"text_config": _LFM2},
    "llama4": _text(interleave_moe_layer_step=2, moe_layers=...),
    "llama4_text": {"interleave_moe_layer_step": 2, "moe_layers": ...},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl": _text(head_dim=8, **_mrope(2, 1, 1)),
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1, "num_hidden_layers": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"head_dim": 16},
    "ministral": {"head_dim": 8},
    "mistral4": {"rope_parameters": ..., "head_dim": ...},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "moshi": {"audio_encoder_config": {"codebook_size": 64}},
    "nemotron": {"num_key_value_heads": 2},
    "paddleocr_vl": _text(**_mrope(2, 1, 1)),
    "perception_lm": {"vision_config": SIGLIP | {"model_args": {"embed_dim": 32}}},
    "qwen2_5_omni_thinker": _text(**_mrope(2, 1, 1)),
    "qwen2_5_vl": _text(**_mrope(2, 1, 1)),
    "qwen2_vl": _text(**_mrope(2, 1, 1)),
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {
        "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 32],
        "attn_layers": ["local", "lsh", "local"], "num_hidden_layers": 3,
        "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_buckets": 4,
    },
    "step3p7": _text(sliding_window=16, layer_types=_MIXED),
    "xlstm": {"num_heads": 4, "chunk_size": 16, "hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4, "attention_head_dim": 16, "attention_hidden_size": 64,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "zamba2": {
        "num_hidden_layers": 4, "attention_head_dim": 16, "attention_hidden_size": 64,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_key_value_heads": 4, "hybrid_layer_ids": ...,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

# How the types are called that do not take a text's ids alone (see text_inputs()).
CALLS: dict[str, str] = {
    "blip": "pixels",
    "blip-2": "pixels",
    "florence2": "decoder",
    "idefics": "images",
    "instructblip": "qformer",
    "instructblipvideo": "video-qformer",
    "kosmos-2": "pixels",
    "pix2struct": "patches",
    "pp_formulanet": "pixels-decoder",
    "t5gemma2": "decoder",
    "udop": "boxes-decoder",
    "vision-encoder-decoder": "pixels-decoder",
    "blt": "no-cache",
}

_DRAFT = "draft model of speculative decoding: runs on the target model's key/value states only"
_CODES = "audio only: predicts codebooks, and the mapping hands its class a config it does not take"

NOT_BUILT: dict[str, str] = {
    "evolla": "protein model: AutoModelForImageTextToText lists it but does not take its config",
    "gemma4_assistant": _DRAFT,
    "gemma4_unified_assistant": _DRAFT,
    "musicgen": _CODES,
    "musicgen_melody": _CODES,
    "pi0": "robot actions: denoises action chunks from images and states, has no token logits",
}

# Towers that stand in for ones from another library, set after the config was made.
TOWERS: dict[str, dict[str, dict[str, Any]]] = {
    "gemma3n": {
        # Tokens from the offset on are embedded by the tower: the last ones of the vocabulary.
        "vision_config": SIGLIP | {"vocab_offset": 251, "vocab_size": 8, "rms_norm_eps": 1e-6}
    },
}
