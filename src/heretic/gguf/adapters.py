"""Which adapters can be a GGUF file exactly: plain LoRA with one scale."""

from __future__ import annotations

from pathlib import Path

from heretic.errors import ExportError
from heretic.export.code_files import read_table
from heretic.system.adapters import ADAPTER_CONFIG

_INEXACT = {
    "use_dora": "it is a DoRA, which also scales the rows of the edited weights",
    "use_rslora": "its scale is that of rsLoRA",
    "alpha_pattern": "its layers have different scales",
    "modules_to_save": "it holds whole modules beside the low-rank ones",
    "fan_in_fan_out": "its matrices are transposed",
    "lora_bias": "it adds to biases",
}
"""Keys of an adapter's configuration that llama.cpp's format has no place for, and why."""


def check_exact(folder: Path) -> None:
    """Refuse an adapter that as a GGUF file would be another edit.

    Raises:
        ExportError: It is one; the error says why.
    """
    config = read_table(folder / ADAPTER_CONFIG)
    kind = str(config.get("peft_type", ""))
    reasons = [reason for key, reason in _INEXACT.items() if config.get(key)]
    if kind != "LORA":
        reasons.insert(0, f"its method is {kind or 'not known'}, not LORA")
    if config.get("bias", "none") != "none":
        reasons.append(_INEXACT["lora_bias"])
    if reasons:
        raise ExportError(
            f"The adapter in {folder} cannot be a GGUF file exactly: {reasons[0]}.",
            remedy="Save merged weights (--export-strategy merge), and make GGUF files of these.",
        )
