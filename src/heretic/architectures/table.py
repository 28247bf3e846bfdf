"""Dense decoder families: where their layers are and what writes the residual stream, as data."""

from __future__ import annotations

from dataclasses import dataclass

from heretic.records import ATTENTION, MLP


@dataclass(frozen=True, slots=True)
class Family:
    """Module paths of one family of models.

    Attributes:
        layers: Path of the list of decoder layers, from the model.
        writers: Component to the writer's path, from a layer.
    """

    layers: str
    writers: tuple[tuple[str, str], ...]


def _family(layers: str, attention: str, mlp: str) -> Family:
    return Family(layers, ((ATTENTION, attention), (MLP, mlp)))


_LLAMA = _family("model.layers", "self_attn.o_proj", "mlp.down_proj")
_GPT2 = _family("transformer.h", "attn.c_proj", "mlp.c_proj")

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        (
            "apertus",
            "arcee",
            "cohere",
            "cohere2",
            "ernie4_5",
            "gemma",
            "glm",
            "granite",
            "helium",
            "hunyuan_v1_dense",
            "llama",
            "ministral",
            "ministral3",
            "mistral",
            "nemotron",
            "olmo",
            "phi3",
            "qwen2",
            "qwen3",
            "seed_oss",
            "smollm3",
            "stablelm",
        ),
        _LLAMA,
    ),
    "biogpt": _family("biogpt.layers", "self_attn.out_proj", "fc2"),
    "bloom": _family("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
    "codegen": _family("transformer.h", "attn.out_proj", "mlp.fc_out"),
    "falcon": _family("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": _family("transformer.h", "attn.attention.out_proj", "mlp.c_proj"),
    "gpt_neox": _family("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h"),
    "gptj": _family("transformer.h", "attn.out_proj", "mlp.fc_out"),
    "mpt": _family("transformer.blocks", "attn.out_proj", "ffn.down_proj"),
    "opt": _family("model.decoder.layers", "self_attn.out_proj", "fc2"),
    "phi": _family("model.layers", "self_attn.dense", "mlp.fc2"),
    "starcoder2": _family("model.layers", "self_attn.o_proj", "mlp.c_proj"),
}

NOT_YET: dict[str, str] = {
    **dict.fromkeys(
        (
            "exaone4",
            "gemma2",
            "gemma3",
            "gemma3_text",
            "gemma3n",
            "gemma4",
            "glm4",
            "olmo2",
            "olmo3",
        ),
        "a norm follows its residual writers",
    ),
    **dict.fromkeys(
        (
            "dbrx",
            "deepseek_v2",
            "deepseek_v3",
            "glm4_moe",
            "gpt_oss",
            "granitemoe",
            "mixtral",
            "olmoe",
            "phimoe",
            "qwen2_moe",
            "qwen3_moe",
        ),
        "it has experts",
    ),
    **dict.fromkeys(
        (
            "bamba",
            "falcon_h1",
            "falcon_mamba",
            "granitemoehybrid",
            "jamba",
            "lfm2",
            "mamba",
            "mamba2",
            "nemotron_h",
            "qwen3_5",
            "qwen3_next",
            "recurrent_gemma",
            "rwkv",
            "zamba",
            "zamba2",
        ),
        "it has state-space, convolution or linear-attention mixers",
    ),
}
"""Model types that are refused, and why."""
