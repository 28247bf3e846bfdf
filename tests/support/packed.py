"""Tiny checkpoints with packed weights, made by the library that defines their format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support import tiny

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
"""Widths that groups of 32 divide, and blocks of 40 do not."""

BLOCK = [40, 40]

FP8 = {"num_bits": 8, "type": "float"}
INTEGERS = {"num_bits": 4, "type": "int"}
INPUTS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}

SCHEMES: dict[str, dict[str, Any]] = {
    "fp8-tensor": {"weights": {**FP8, "strategy": "tensor"}, "input_activations": INPUTS},
    "fp8-channel": {"weights": {**FP8, "strategy": "channel"}, "input_activations": INPUTS},
    "fp8-block": {"weights": {**FP8, "strategy": "block", "block_structure": BLOCK}},
    "int8-channel": {
        "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
        "input_activations": {**INPUTS, "type": "int"},
    },
    "w8a16": {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}},
    "w4a16": {"weights": {**INTEGERS, "strategy": "group", "group_size": 32}},
    "w4a16-asymmetric": {
        "weights": {**INTEGERS, "strategy": "group", "group_size": 32, "symmetric": False}
    },
    "nvfp4": {
        "weights": {
            "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
            "scale_dtype": "torch.float8_e4m3fn",
        }
    },
}  # fmt: skip
"""Schemes of compressed-tensors, by a name of ours."""


def compressed(
    path: Path, scheme: str, model_type: str = "llama", *, shard: str = "1GB", **overrides: Any
) -> Path:
    """A tiny model whose linear maps compressed-tensors has quantised by one of `SCHEMES`."""
    model = tiny.model(model_type, **{**SIZES, **overrides}).to(torch.bfloat16)
    quantise(model, SCHEMES[scheme], path, shard)
    tiny.tokenizer().save_pretrained(path)
    return path


def quantise(model: Any, scheme: dict[str, Any], path: Path, shard: str = "5GB") -> None:
    """Round a model's linear maps to the nearest levels by a scheme, and save it packed."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    groups = {"group_0": {"targets": ["Linear"], **scheme}}
    config = QuantizationConfig(config_groups=groups, ignore=["lm_head"])
    apply_quantization_config(model, config)
    for module in model.modules():
        weights = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        if isinstance(module, nn.Linear) and weights is not None:
            _calibrate(module, weights)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(path, max_shard_size=shard)
    compressor.update_config(str(path))


def _calibrate(module: nn.Linear, weights: Any) -> None:
    """Scales from the smallest and largest weight, as the library's min-max observer takes them."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    from heretic.quantised.cells import split

    matrix, shape = module.weight.detach().float(), tuple(module.weight.shape)
    cell = {
        "tensor": shape,
        "channel": (1, shape[1]),
        "block": tuple(weights.block_structure or ()),
    }.get(weights.strategy, (1, weights.group_size))
    cells = split(matrix, cell)
    low, high = cells.amin(dim=(-3, -1)), cells.amax(dim=(-3, -1))
    common = None
    if hasattr(module, "weight_global_scale"):
        common = generate_gparam(matrix.amin(), matrix.amax())
        _set(module, "weight_global_scale", common)
    scale, zero = calculate_qparams(low, high, weights, global_scale=common)
    _set(module, "weight_scale", scale)
    if hasattr(module, "weight_zero_point"):
        _set(module, "weight_zero_point", zero)


def _set(module: nn.Module, name: str, values: Tensor) -> None:
    parameter = module.get_parameter(name)
    parameter.data.copy_(values.reshape(parameter.shape))


def fp8(
    path: Path,
    model_type: str = "llama",
    *,
    block: list[int] | None = BLOCK,
    scale_dtype: torch.dtype = torch.bfloat16,
    scale_fmt: str | None = None,
    shard: str = "1GB",
    **overrides: Any,
) -> Path:
    """A tiny model in FP8 as DeepSeek and Qwen publish it: `weight_scale_inv`."""
    tiny.model(model_type, **{**SIZES, **overrides}).to(torch.bfloat16).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    state: dict[str, Tensor] = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        if "_proj." not in name:
            state[name] = tensor
            continue
        state[name], scale = in_blocks(tensor.float(), block, powers=scale_fmt == "ue8m0")
        state[f"{name}_scale_inv"] = scale.to(scale_dtype)
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    rewrite(path, state, {**settings, **({"scale_fmt": scale_fmt} if scale_fmt else {})})
    return path


def in_blocks(
    weight: Tensor, block: list[int] | None, *, powers: bool = False
) -> tuple[Tensor, Tensor]:
    """A weight as e4m3, and its scales: a plain loop over blocks, not the code under test."""
    rows, columns = block or weight.shape
    most = torch.finfo(torch.float8_e4m3fn).max
    grid = torch.empty(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
    levels = torch.empty_like(weight)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            where = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            scale = weight[where].abs().max() / most
            scale = torch.exp2(scale.log2().ceil()) if powers else scale.bfloat16().float()
            grid[i, j] = scale
            levels[where] = (weight[where] / scale).clamp(-most, most)
    return levels.to(torch.float8_e4m3fn), grid if block else grid.reshape(())


def rewrite(path: Path, state: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    """Put packed tensors in the place of a folder's weights, and say so in its config.json."""
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = quantization
    (path / "config.json").write_text(json.dumps(config, indent=2))
