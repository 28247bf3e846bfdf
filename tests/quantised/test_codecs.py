"""Packed weights are read as their libraries read them, and packing what is not edited is exact."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support import packed
from torch import Tensor

from heretic.errors import ModelError
from heretic.export.safetensors.checkpoint import Checkpoint, read_checkpoint
from heretic.export.safetensors.packed import read, unpacked
from heretic.quantised import integers
from heretic.quantised.fp8 import BlockFp8
from heretic.quantised.weights import Writing

DATA = Path(__file__).parents[1] / "data" / "packed"

ROUNDED = {4: 0.12, 8: 0.03}
"""Largest relative change of a weight by rounding to so many bits, root mean square."""


def source(folder: Path) -> Checkpoint:
    found = read_checkpoint(folder)
    assert found is not None
    return unpacked(found, "m")


def decoded(found: Checkpoint, name: str) -> Tensor:
    weight = found.packed[name]
    return weight.codec.decode({part: read(entry) for part, entry in weight.parts.items()})


def check_writing(found: Checkpoint, bits: int) -> None:
    """What is not edited is packed to the same bytes, and an edit is kept up to rounding."""
    torch.manual_seed(0)
    for weight in found.packed.values():
        parts = {part: read(entry) for part, entry in weight.parts.items()}
        codec: Any = weight.codec
        assert isinstance(codec, BlockFp8) or codec.writes
        check_unchanged(codec, parts)
        original = codec.decode(parts)
        assert original.shape == weight.shape
        direction = torch.nn.functional.normalize(torch.randn(len(original), 1), dim=0)
        edited = original - direction @ (direction.T @ original)
        after = {**parts, **codec.encode(edited, parts)}
        assert {name: (t.dtype, t.shape) for name, t in after.items()} == {
            name: (t.dtype, t.shape) for name, t in parts.items()
        }
        left = codec.decode(after) - edited
        assert left.norm() < ROUNDED[bits] * edited.norm()
        assert left.norm() < (original - edited).norm()


def check_unchanged(codec: Writing, parts: Mapping[str, Tensor]) -> None:
    for part, tensor in codec.encode(codec.decode(parts), parts).items():
        assert torch.equal(
            tensor.reshape(-1).view(torch.uint8), parts[part].reshape(-1).view(torch.uint8)
        )


@pytest.mark.parametrize("scheme", packed.SCHEMES)
def test_weights_of_compressed_tensors(scheme: str, tmp_path: Path) -> None:
    from compressed_tensors.compressors import BaseCompressor

    found = source(packed.compressed(tmp_path / "m", scheme))
    assert len(found.packed) == 21
    bits = packed.SCHEMES[scheme]["weights"]["num_bits"]
    check_writing(found, bits)
    for name, weight in found.packed.items():
        codec: Any = weight.codec
        names = {"weight": "weight"}
        parts = {names.get(p, f"weight_{p}"): read(entry) for p, entry in weight.parts.items()}
        compressor = BaseCompressor.get_value_from_registry(codec.format)
        theirs = compressor.decompress(parts, codec.scheme)["weight"]  # in bfloat16
        torch.testing.assert_close(decoded(found, name), theirs.float(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("block", [packed.BLOCK, [32, 32], None])
def test_weights_in_fp8_blocks(block: list[int] | None, tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    dtype = torch.float32 if block is None else torch.bfloat16
    found = source(packed.fp8(tmp_path / "m", block=block, scale_dtype=dtype))
    check_writing(found, 8)
    if block == packed.BLOCK:  # transformers refuses blocks that a weight is no multiple of
        return
    for name, weight in found.packed.items():
        levels, scale = (read(weight.parts[part]) for part in ("weight", "scale"))
        theirs = Fp8Dequantize(None)._dequantize_one(levels, scale, torch.float32)
        assert torch.equal(decoded(found, name), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float8_e8m0fnu])
def test_scales_that_are_powers_of_two_stay_so(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    levels, scale = packed.in_blocks(torch.randn(96, 64), packed.BLOCK, powers=True)
    exponents = scale.log2() + 127
    stored = exponents.to(torch.uint8) if dtype == torch.uint8 else scale.to(dtype)
    parts, codec = {"weight": levels, "scale": stored}, BlockFp8((40, 40), powers_of_two=True)
    check_unchanged(codec, parts)
    after = codec.encode(3.3 * codec.decode(parts), parts)["scale"]
    numbers = torch.exp2(after.float() - 127) if dtype == torch.uint8 else after.float()
    assert after.dtype == dtype
    assert torch.equal(numbers.log2(), numbers.log2().round())
    assert (numbers > scale).all(), "an edited weight outside of the old range gets a new scale"


def test_zeros_and_a_zero_scale_stay_numbers() -> None:
    parts = {"weight": torch.zeros(8, 8).to(torch.float8_e4m3fn), "scale": torch.zeros(2, 2)}
    codec = BlockFp8((4, 4))
    check_unchanged(codec, parts)
    after = codec.encode(torch.ones(8, 8), parts)
    torch.testing.assert_close(codec.decode(after), torch.ones(8, 8))


@pytest.mark.parametrize(("library", "rounded"), [("awq", 2**-10), ("gptq", 2**-7)])
def test_weights_are_what_the_library_makes_of_them(library: str, rounded: float) -> None:
    """AutoAWQ computes in float16, GPTQModel in bfloat16."""
    found = source(DATA / library)
    assert len(found.packed) == 21
    assert not any(weight.codec.writes for weight in found.packed.values())
    for name, theirs in load_file(DATA / library / "reference.safetensors").items():
        ours = decoded(found, f"model.layers.0.{name}.weight")
        torch.testing.assert_close(ours.half(), theirs, rtol=rounded, atol=1e-4)


def test_mxfp4_is_read_as_transformers_reads_it() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (2, 64, 3, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(118, 130, (2, 64, 3), generator=generator, dtype=torch.uint8)
    ours = integers.Mxfp4().decode({"blocks": blocks, "scales": scales})
    assert ours.shape == (2, 96, 64)
    assert torch.equal(ours, convert_moe_packed_tensors(blocks, scales))


def test_a_packed_tensor_that_nothing_explains_is_refused(tmp_path: Path) -> None:
    folder = packed.fp8(tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.down_proj.weight_scale_inv"]
    packed.rewrite(folder, state, {"quant_method": "fp8", "weight_block_size": packed.BLOCK})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj\.weight of m is packed"):
        source(folder)


def test_what_a_missing_library_is_needed_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packed.compressed(tmp_path / "m", "w4a16")
    monkeypatch.setitem(sys.modules, "compressed_tensors.quantization", None)
    with pytest.raises(ModelError, match="needs the package compressed_tensors") as caught:
        source(folder)
    assert "[compressed]" in (caught.value.remedy or "")


def test_a_module_gets_the_group_that_names_it(tmp_path: Path) -> None:
    folder = packed.compressed(tmp_path / "m", "w8a16")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    groups = config["quantization_config"]["config_groups"]
    own = {**groups["group_0"], "targets": [r"re:.*down_proj$"]}
    groups["group_0"]["weights"] = packed.SCHEMES["w4a16"]["weights"]
    groups["group_1"] = own
    state = load_file(folder / "model.safetensors")
    kept = {n: t for n, t in state.items() if "down_proj" in n or "_proj" not in n}
    packed.rewrite(folder, kept, config["quantization_config"])
    found = source(folder)
    assert len(found.packed) == 3
    assert {weight.shape for weight in found.packed.values()} == {(64, 96)}
    groups["group_1"]["targets"] = ["re:nothing"]
    packed.rewrite(folder, kept, config["quantization_config"])
    with pytest.raises(ModelError, match="The scales of"):
        source(folder)


def test_scales_of_other_blocks_are_refused(tmp_path: Path) -> None:
    folder = packed.fp8(tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    packed.rewrite(folder, state, {"quant_method": "fp8", "weight_block_size": [64, 64]})
    with pytest.raises(ModelError, match=r"The scales of .* have the shape"):
        source(folder)


def test_unpacked_weights_that_are_said_to_be_packed_are_refused(tmp_path: Path) -> None:
    folder = packed.fp8(tmp_path / "m")
    state = {n: t.bfloat16() for n, t in load_file(folder / "model.safetensors").items()}
    packed.rewrite(folder, state, {"quant_method": "fp8", "weight_block_size": packed.BLOCK})
    with pytest.raises(ModelError, match="no tensor in its files is packed"):
        source(folder)
