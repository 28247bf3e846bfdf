"""The zoo of tiny models: the families below run, and no model type is forgotten."""

from __future__ import annotations

import pytest
import torch
from tests.support import zoo

FAMILIES = (
    # Dense.
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3n_text",
    "gemma4_text", "phi", "phi3", "internlm3",
    # Multimodal.
    "llava", "llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl",
    "phi4_multimodal", "gemma3", "gemma4",
    # Mixtures of experts.
    "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32",
    "deepseek_v4", "phimoe", "gpt_oss", "granitemoe", "granitemoeshared", "glm4_moe",
    # Hybrids and state spaces.
    "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe_text", "lfm2", "lfm2_moe",
    "granitemoehybrid", "jamba", "nemotron_h", "falcon_h1", "mamba", "mamba2", "rwkv",
)  # fmt: skip


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_named_family_runs(model_type):
    model = zoo.tiny_model(model_type)
    with torch.no_grad():
        logits = model(**zoo.text_inputs(model_type, model.config)).logits
    assert logits.shape[:2] == (1, 24)
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


def test_a_seed_fixes_the_weights():
    first, same, other = (zoo.tiny_model("llama", seed=seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_every_type_is_built_or_says_why_not():
    assert set(zoo.BUILT) | set(zoo.NOT_BUILT) == set(zoo.MODEL_TYPES)
    assert not set(zoo.BUILT) & set(zoo.NOT_BUILT)
    assert len(zoo.NOT_BUILT) <= 0.05 * len(zoo.MODEL_TYPES)
    assert all(zoo.NOT_BUILT.values())
