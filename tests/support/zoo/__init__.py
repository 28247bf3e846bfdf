"""A tiny random model of every type that transformers maps to a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MULTIMODAL,
)

from tests.support import tiny
from tests.support.zoo.overrides import BASE, CALLS, NOT_BUILT, OVERRIDES, TOWERS
from tests.support.zoo.shrink import tiny_arguments

MODEL_TYPES: tuple[str, ...] = tuple(sorted({*CAUSAL, *MULTIMODAL}))
BUILT: tuple[str, ...] = tuple(name for name in MODEL_TYPES if name not in NOT_BUILT)
SCALE = 0.3

__all__ = [
    "BUILT",
    "CALLS",
    "MODEL_TYPES",
    "NOT_BUILT",
    "kind",
    "text_inputs",
    "tiny_config",
    "tiny_folder",
    "tiny_model",
]


def kind(model_type: str) -> Literal["causal-lm", "image-text-to-text"]:
    """The auto class that makes the model; of two, the one whose class holds the other modality."""
    if model_type not in MULTIMODAL or CAUSAL.get(model_type) == MULTIMODAL[model_type]:
        return "causal-lm"
    return "image-text-to-text"


def tiny_config(model_type: str) -> Any:
    """The type's config with small values, every kind of layer at least once."""
    config_class = CONFIG_MAPPING[model_type]
    default = config_class(**BASE.get(model_type, {}))
    config = config_class(**tiny_arguments(default, OVERRIDES.get(model_type, {})))
    for name, values in TOWERS.get(model_type, {}).items():
        # The class insists on its own type of tower; what builds the tower does not.
        object.__setattr__(config, name, AutoConfig.for_model(**values))
    return config


# Parameters whose own start values matter: decays and step sizes of recurrences.
_KEPT = ("A_log", "dt_bias", "time_decay", "rg_lru", "recurrent_param")


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights that matter: matrices of scale 0.3, gains around their start, biases not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or any(part in name for part in _KEPT):
            continue
        noise = SCALE * torch.randn(parameter.shape, generator=generator)
        flat = parameter.dim() < 2 or bool((parameter == 1).all())
        start = torch.nan_to_num(parameter.detach().float()) if flat else 0.0
        parameter.data.copy_(start + noise)


def tiny_model(model_type: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of that type, on the CPU, ready to run."""
    torch.manual_seed(seed)
    config = tiny_config(model_type)
    auto = AutoModelForCausalLM if kind(model_type) == "causal-lm" else AutoModelForImageTextToText
    model = auto.from_config(config, dtype=dtype).eval()
    randomise(model, seed)
    return model


def tiny_folder(path: Path, model_type: str, seed: int = 0) -> Path:
    """Save such a model under `path`, with the bytes' tokenizer, and return `path`."""
    config, tokenizer = tiny_config(model_type), tiny.tokenizer()
    for part in (config, config.get_text_config(decoder=True)):
        part.vocab_size = len(tokenizer)
        part.bos_token_id, part.eos_token_id, part.pad_token_id = 1, 2, 0
    torch.manual_seed(seed)
    auto = AutoModelForCausalLM if kind(model_type) == "causal-lm" else AutoModelForImageTextToText
    model = auto.from_config(config, dtype=torch.float32).eval()
    randomise(model, seed)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def text_inputs(
    model_type: str, config: Any, length: int = 24, batch: int = 1, seed: int = 0
) -> dict[str, Any]:
    """Arguments of a forward call on plain text: token ids, and what the type cannot do without."""
    generator = torch.Generator().manual_seed(seed)
    call = CALLS.get(model_type, "")
    ids = torch.randint(3, 97, (batch, length), generator=generator)
    inputs: dict[str, Any] = {"input_ids": ids}
    if call.endswith("decoder"):
        inputs["decoder_input_ids"] = ids
    if call == "no-cache":
        inputs["use_cache"] = False
    if call == "boxes-decoder":
        inputs["bbox"] = torch.zeros(batch, length, 4)
    if call.endswith("qformer"):
        inputs["qformer_input_ids"] = ids
    if call == "patches":
        inputs = {"flattened_patches": torch.zeros(batch, 4, 770), "decoder_input_ids": ids}
    if call == "pixels-decoder":
        del inputs["input_ids"]
    if call.startswith(("pixels", "images", "qformer", "video")):
        size = _image_size(config)
        lead = (batch, 1) if call in ("images", "video-qformer") else (batch,)
        inputs["pixel_values"] = torch.zeros(*lead, 3, size, size)
    if model_type == "kosmos-2":
        mask = torch.zeros(batch, length, dtype=torch.bool)
        mask[:, : config.latent_query_num] = True
        inputs["image_embeds_position_mask"] = mask
    if call == "images":
        inputs["image_attention_mask"] = torch.ones(batch, length, 1)
    return inputs


def _image_size(config: Any) -> int:
    tower = next(
        (getattr(config, name) for name in ("vision_config", "encoder") if hasattr(config, name)),
        config,
    )
    size = getattr(tower, "image_size", 32)
    return int(size if isinstance(size, int) else size[0])
