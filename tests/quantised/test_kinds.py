"""What config.json says of quantised weights is known, or refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support import packed, tiny

from heretic.errors import ModelError
from heretic.model.files import check_files
from heretic.quantised.kinds import quantisation_of

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}


def compressed(weights: dict[str, Any], kind: str, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": group},
        **more,
    }


KNOWN = [
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "own format", "128 x 128"),
    ({"quant_method": "fp8"}, "own format", "one scale for each tensor"),
    (compressed(packed.SCHEMES["w4a16"]["weights"], "pack-quantized"), "own format", "groups of"),
    (compressed(packed.SCHEMES["nvfp4"]["weights"], "nvfp4-pack-quantized"), "own format", "NVFP4"),
    ({"quant_method": "mxfp4"}, "unquantised", "MXFP4"),
    (GPTQ, "unquantised", "GPTQ, 4 bits"),
    (AWQ, "unquantised", "AWQ, 4 bits"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "adapter", "bitsandbytes"),
    ({"load_in_8bit": True}, "adapter", "bitsandbytes"),
    ({"quant_method": "hqq"}, "adapter", "hqq"),
]

W4 = packed.SCHEMES["w4a16"]["weights"]

UNKNOWN = [
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt"),
    ({"quant_method": "of next year"}, "of next year"),
    ({"bits": 4}, "''"),
    ({"quant_method": "fp8", "fmt": "e5m2"}, "e5m2"),
    ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "[0, 128]"),
    ({"quant_method": "fp8", "scale_fmt": "ue4m3"}, "ue4m3"),
    (compressed(W4, "marlin-24"), "marlin-24"),
    (compressed({**W4, "num_bits": 4, "type": "float"}, "mxfp4-pack-quantized"), "mxfp4"),
    (compressed({**W4, "actorder": "group"}, "pack-quantized"), "actorder"),
    (compressed(W4, "pack-quantized", sparsity_config={"format": "sparse-24"}), "sparse-24"),
    (compressed(W4, "pack-quantized", transform_config={"config_groups": {}}), "transforms"),
    (compressed(W4, "mixed-precision"), "mixed-precision"),
    ({"quant_method": "compressed-tensors", "config_groups": {}}, "without a group"),
    ({"quant_method": "compressed-tensors", "config_groups": {"W4A16": ["Linear"]}}, "preset"),
    ({**GPTQ, "bits": 3}, "3 bits"),
    ({**GPTQ, "checkpoint_format": "marlin"}, "marlin"),
    ({**GPTQ, "dynamic": {"+:.*down.*": {"bits": 8}}}, "dynamic"),
    ({**AWQ, "version": "gemv"}, "gemv"),
    ({**AWQ, "zero_point": False}, "zero points"),
]


@pytest.mark.parametrize(("settings", "saved", "label"), KNOWN)
def test_what_is_known_is_told_with_how_it_is_saved(
    settings: dict[str, Any], saved: str, label: str
) -> None:
    found = quantisation_of({"quantization_config": settings}, "m")
    assert found is not None
    assert (found.saved, label in found.label) == (saved, True)
    nested = quantisation_of({"text_config": {"quantization_config": settings}}, "m")
    assert nested == found


@pytest.mark.parametrize(("settings", "named"), UNKNOWN)
def test_what_is_unknown_is_refused_by_its_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match="quantised in a way that Heretic cannot read") as caught:
        quantisation_of({"quantization_config": settings}, "org/model")
    assert "org/model" in caught.value.message
    assert named in caught.value.message
    assert "unquantised" in (caught.value.remedy or "")


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"text_config": None}])
def test_an_ordinary_configuration_says_nothing(config: dict[str, Any]) -> None:
    assert quantisation_of(config, "m") is None


def test_unknown_weights_are_refused_when_files_are_looked_at(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "m")
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "modelopt"}}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="modelopt"):
        check_files(str(folder), None, allow_pickle=False)
