"""Makes the checkpoints in this folder with the libraries that define their formats.

They were made once. Each library wants an environment of its own:

    pip install autoawq==0.2.9 transformers==4.51.3      # with Python 3.11
    python make.py awq awq

    pip install gptqmodel==7.7.0
    python make.py gptq gptq

`reference.safetensors` holds the first layer's output projections as the library dequantises them.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

GROUP = 32
ROWS, LENGTH = 24, 64
"""Rows of random tokens by which the libraries calibrate, and tokens of each."""

SHOWN = ("self_attn.o_proj", "mlp.down_proj")


def model(folder: Path) -> None:
    """A tiny Llama with random weights."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).half().save_pretrained(folder)
    # GPTQModel wants a tokenizer, though the rows below are tokens already.
    names = [f"<{number}>" for number in range(config.vocab_size)]
    raw = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, names[0]))
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=names[0]).save_pretrained(folder)


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    found: list[list[int]] = torch.randint(3, 259, (ROWS, LENGTH), generator=generator).tolist()
    return found


def awq(source: Path, out: Path) -> dict[str, Tensor]:
    from awq import AutoAWQForCausalLM
    from awq.utils.packing_utils import dequantize_gemm

    made = AutoAWQForCausalLM.from_pretrained(str(source), device_map="cpu", safetensors=True)
    settings = {"zero_point": True, "q_group_size": GROUP, "w_bit": 4, "version": "GEMM"}
    made.quantize(None, settings, calib_data=rows(), max_calib_seq_len=LENGTH)
    made.save_quantized(str(out))
    layer = made.model.model.layers[0]
    return {
        name: dequantize_gemm(m.qweight, m.qzeros, m.scales, 4, GROUP).T.contiguous()
        for name, m in shown(layer).items()
    }


def gptq(source: Path, out: Path) -> dict[str, Tensor]:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    settings = QuantizeConfig(bits=4, group_size=GROUP, desc_act=True, pack_impl="original")
    made = GPTQModel.load(str(source), settings)
    made.quantize([{"input_ids": r, "attention_mask": [1] * len(r)} for r in rows()], batch_size=1)
    made.save(str(out))
    loaded = GPTQModel.load(str(out), device="cpu", backend=BACKEND.TORCH)
    layer = loaded.model.model.layers[0]
    return {name: m.dequantize_weight().T.contiguous() for name, m in shown(layer).items()}


def shown(layer: Any) -> dict[str, Any]:
    return {name: layer.get_submodule(name) for name in SHOWN}


def main() -> None:
    kind, out = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "source", Path(folder) / "made"
        model(source)
        reference = {"awq": awq, "gptq": gptq}[kind](source, made)
        out.mkdir(exist_ok=True)
        shutil.copy(made / "model.safetensors", out / "model.safetensors")
        config = json.loads((made / "config.json").read_text())
        config["quantization_config"].pop("meta", None)  # names a temporary folder
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file({k: t.half() for k, t in reference.items()}, out / "reference.safetensors")


if __name__ == "__main__":
    main()
